"""What networks of transformers return only when asked, and which token their classifiers read."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kdlab.compat import uncompiled
from kdlab.errors import InputError

_log = logging.getLogger("kdlab.outputs")

REQUESTS = {"hidden_states": "output_hidden_states", "attentions": "output_attentions"}


def requested(network: nn.Module, taps: Iterable[str]) -> dict[str, bool]:
    """Return the keyword arguments with which a network of transformers returns what is tapped of its output.

    Its attention is set to the eager implementation where attentions are tapped (``"attentions.3"``), since the others
    never compute the probabilities and transformers returns none. Other networks get no arguments.

    Args:
        network: any network.
        taps: names that are no layers.

    Raises:
        InputError: attentions are tapped, but the network's implementation cannot be changed.
    """
    config = getattr(uncompiled(network), "config", None)
    if not hasattr(config, "output_hidden_states"):
        return {}
    firsts = {name.partition(".")[0] for name in taps}
    requests = {option: True for end, option in REQUESTS.items() if any(first.endswith(end) for first in firsts)}
    if "output_attentions" in requests:
        _use_eager(uncompiled(network), config)
    return requests


def _use_eager(network: Any, config: Any) -> None:
    before = getattr(config, "_attn_implementation", None)
    if before == "eager":
        return
    models = [part for part in network.modules() if hasattr(part, "set_attn_implementation")]
    if models:
        models[0].set_attn_implementation("eager")
    if getattr(config, "_attn_implementation", None) != "eager":
        raise InputError(
            f"{type(network).__name__} returns no attentions with its implementation {before!r}: build it with "
            "attn_implementation='eager'."
        )
    _log.info(
        "%s: attention is computed eagerly (not by %s), since attentions are tapped.", type(network).__name__, before
    )


def last_token(states: Tensor, inputs: Any) -> Tensor:
    """Return of states (B, L, D) those of the last position that counts, (B, D).

    A decoder's classifier (GPT-2, Llama) reads every position, and its logits are those of this one.
    """
    mask = inputs.get("attention_mask") if isinstance(inputs, Mapping) else None
    if mask is None or mask.dim() != 2:
        return states[:, -1]
    places = (torch.arange(mask.shape[1], device=mask.device) * mask.bool()).argmax(1)
    return states[torch.arange(len(states), device=states.device), places]
