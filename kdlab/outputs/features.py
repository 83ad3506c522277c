"""Networks without a classifier, and what transformers and convolutions give as tokens and as maps."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor, nn

from kdlab.compat import uncompiled
from kdlab.errors import InputError
from kdlab.outputs.network_layers import classifier_of, declares_no_classifier

FEATURES = "features"
"""Name of a tap: what timm's ``forward_features`` and the ``last_hidden_state`` of transformers give."""
FORMS = ("tokens", "map")
"""Ends of a tap's name after a colon, as in ``"norm:map"``."""
MOST_PREFIX = 16
"""Class and register tokens that a transformer may have."""


def split_form(name: str) -> tuple[str, str]:
    """Split ``"norm:map"`` into layer and form, which is empty for a layer as it is.

    >>> split_form("norm:map"), split_form("layer4")
    (('norm', 'map'), ('layer4', ''))
    """
    layer, _, form = name.rpartition(":")
    return (layer, form) if layer and form in FORMS else (name, "")


def as_form(value: Tensor, form: str, network: nn.Module, inputs: Any, tap: str) -> Tensor:
    """Return a layer as patch tokens (B, N, D) or as a map (B, D, h, w), without class and register tokens.

    timm says how many of these precede the patches (``num_prefix_tokens``); elsewhere they are the tokens that the
    largest grid of square patches leaves over. The grid has the ratio of the image.

    Args:
        value: tokens (B, N, D), or a map (B, D, h, w); (B, h, w, D) of networks with timm's ``output_fmt`` "NHWC".
        form: ``"tokens"``, ``"map"``, or empty to return the layer as it is.
        network: the network.
        inputs: what it was called with: images (B, C, H, W), or a mapping with ``pixel_values``.
        tap: name of the layer, for messages.

    Raises:
        InputError: the layer is neither, or its tokens are no grid.
    """
    if not form:
        return value
    if value.dim() == 4:
        if str(getattr(uncompiled(network), "output_fmt", "")).endswith("NHWC"):
            value = value.permute(0, 3, 1, 2)
        return value if form == "map" else value.flatten(2).transpose(1, 2)
    if value.dim() != 3:
        raise InputError(
            f"Layer {tap!r} gives {tuple(value.shape)}, neither tokens (B, N, D) nor a map (B, D, h, w): tap another."
        )
    images = inputs.get("pixel_values") if isinstance(inputs, Mapping) else inputs
    if not isinstance(images, Tensor) or images.dim() != 4:
        raise InputError(f"Layer {tap!r} as {form} needs images (B, C, H, W) as the network's inputs.")
    prefix = getattr(uncompiled(network), "num_prefix_tokens", None)
    count, (tall, wide) = value.shape[1], images.shape[2:]
    grid = _grid(count, tall, wide, prefix if isinstance(prefix, int) else None)
    if grid is None:
        raise InputError(f"The {count} tokens of layer {tap!r} are no grid of an image of {tall} x {wide} pixels.")
    tokens = value[:, count - math.prod(grid) :]
    if form == "tokens":
        return tokens
    return tokens.transpose(1, 2).reshape(len(tokens), tokens.shape[2], *grid)


def _grid(count: int, tall: int, wide: int, prefix: int | None) -> tuple[int, int] | None:
    """Return rows and columns of patches; ``None`` if no size of a patch gives so many."""
    sizes = ((tall // size, wide // size) for size in range(1, min(tall, wide) + 1))
    fitting = [grid for grid in sizes if math.prod(grid) <= count]
    best = max(fitting, key=math.prod, default=None)
    if prefix is not None:
        return next((grid for grid in fitting if math.prod(grid) == count - prefix), None)
    return best if best and count - math.prod(best) <= min(MOST_PREFIX, math.prod(best)) else None


class _Ran(NamedTuple):
    module: nn.Module
    shape: tuple[int, ...]


class ForwardTrace:
    """Whether a network has a classifier, found in one forward.

    Its classifier is the last linear layer (:func:`~kdlab.outputs.network_layers.classifier_of`) unless something ran
    after it that shows that the layer is inside: a layer with another shape of output, or, where the linear layer
    works on tokens, one with parameters. A network that says ``num_classes == 0`` (timm's convention) or whose
    ``get_classifier()`` is an identity has none.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self._ran: list[_Ran] = []

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Record the layers that run inside."""
        self._ran.clear()
        leaves = [module for module in self.network.modules() if not [*module.children()]]
        handles = [leaf.register_forward_hook(self._record) for leaf in leaves]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _record(self, module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(output, Tensor) and not output.is_nested:
            self._ran.append(_Ran(module, tuple(output.shape)))

    def is_headless(self, raw: Any, logits: Tensor) -> bool:
        """Return whether the output of the recorded forward is an embedding and no class scores."""
        if declares_no_classifier(self.network):
            return True
        if isinstance(getattr(uncompiled(self.network), "heads", None), Mapping):
            return False
        if only_pooled(raw):
            return True
        classifier = classifier_of(self.network)
        places = [place for place, ran in enumerate(self._ran) if ran.module is classifier]
        if classifier is None or not places:
            weighted = [ran for ran in self._ran if [*ran.module.parameters(recurse=False)]]
            scores = bool(weighted) and isinstance(weighted[-1].module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
            return bool(weighted) and logits.dim() == 2 and not scores
        shape, after = self._ran[places[-1]].shape, self._ran[places[-1] + 1 :]
        other = any(ran.shape != shape for ran in after)
        return other or (len(shape) > 2 and any([*ran.module.parameters(recurse=False)] for ran in after))


def only_pooled(raw: Any) -> bool:
    """Return whether a model output of transformers has a pooled output and no logits."""
    return isinstance(raw, Mapping) and "logits" not in raw and isinstance(raw.get("pooler_output"), Tensor)


@contextmanager
def recorded_features(network: Any, record: Any) -> Iterator[None]:
    """Call ``record(network, args, output)`` where the network calls its ``forward_features``."""
    network = uncompiled(network)
    plain = network.forward_features

    def forward_features(*args: Any, **options: Any) -> Any:
        output = plain(*args, **options)
        record(network, args, output)
        return output

    network.forward_features = forward_features
    try:
        yield
    finally:
        del network.forward_features
