"""Students that train low-rank adapters alone, through ``peft``."""

from __future__ import annotations

import copy
import warnings
from typing import Any

from torch import nn

from kdlab.errors import InputError
from kdlab.models.weights import load_weights

TYPES = ("SEQ_CLS", "TOKEN_CLS", "CAUSAL_LM")


def lora(
    network: nn.Module,
    rank: int = 8,
    alpha: int = 16,
    dropout: float = 0.0,
    targets: str | list[str] | None = None,
    trained: list[str] | None = None,
    weights: str | None = None,
) -> nn.Module:
    """Give a transformer low-rank adapters, the only parts that train (``pip install peft``).

    Paper: E. Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022, arXiv 2106.09685. A new
    classifier trains too. The checkpoint has the adapters and the network; :func:`merged` gives the network with the
    adapters added to its weights, which is what is deployed.

    Args:
        network: a network of :func:`kdlab.models.hugging_face` or transformers.
        rank: rank of the adapters.
        alpha: their scale times the rank.
        dropout: probability that an input of an adapter is dropped.
        targets: the ends of the names of the layers that get one, or ``"all-linear"``; ``None`` for peft's choice.
        trained: further parts that train whole, by the ends of their names; peft adds the classifier.
        weights: a weights file of the network with adapters, see :func:`kdlab.models.load_weights`.

    Raises:
        InputError: peft is not installed, or finds no such layers.
    """
    try:
        import peft  # an optional dependency
    except ImportError as error:
        raise InputError("lora needs peft: install it with `pip install peft`.") from error
    name = type(network).__name__
    kinds = {"SequenceClassification": "SEQ_CLS", "TokenClassification": "TOKEN_CLS", "CausalLM": "CAUSAL_LM"}
    kind = next((task for end, task in kinds.items() if name.endswith(end)), "CAUSAL_LM" if "LMHead" in name else None)
    options: dict[str, Any] = {"target_modules": targets, "modules_to_save": trained, "task_type": kind}
    try:
        config = peft.LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, **options)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "fan_in_fan_out is set")  # peft sets it right for each layer
            adapted: nn.Module = peft.get_peft_model(network, config).train()
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise InputError(f"peft cannot adapt {name}: {reason}.") from error
    return adapted if weights is None else load_weights(adapted, weights)


def merged(network: nn.Module) -> nn.Module:
    """Return a copy of an adapted network's transformer with the adapters added to its weights; the network stays."""
    whole: nn.Module = copy.deepcopy(network).merge_and_unload()  # type: ignore[operator]
    return whole
