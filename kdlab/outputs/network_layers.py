"""The layers and the heads of a network, by the names that users write."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from torch import nn

from kdlab.compat import uncompiled


class Head(NamedTuple):
    """One of several outputs of a network, treated as a network of its own.

    Attributes:
        classifier: what reads this head's embedding; ``None`` if it has none.
        layer: from a layer's name, as this head's users write it, to the network's own name for it.
    """

    classifier: nn.Module | None
    layer: Callable[[str], str]


def heads_of(network: nn.Module) -> dict[str, Head]:
    """Return the heads of a network by name, the main one first and named ``""``.

    A network with several has an attribute ``heads`` of this form, and returns a mapping with the main ``logits`` and
    with the logits of every other head by its name.
    """
    given = getattr(network, "heads", None)
    if isinstance(given, Mapping) and "" in given:
        return dict(given)
    return {"": Head(classifier_of(network), str)}


def layer_names(network: nn.Module) -> dict[str, nn.Module]:
    """Return every layer that can be tapped, by the name a user writes (without the wrappers of compile and DDP)."""
    names = (
        (".".join(part for part in name.split(".") if part != "_orig_mod"), module)
        for name, module in network.named_modules()
    )
    return {name: module for name, module in names if name}


def split_call(name: str) -> tuple[str, str]:
    """Split the name of one call of a layer, ``"relu@1"``, into the layer's name and ``"@1"``, else ``""``.

    >>> split_call("layer1.0.relu@1"), split_call("relu")
    (('layer1.0.relu', '@1'), ('relu', ''))
    """
    layer, _, number = name.rpartition("@")
    return (layer, f"@{number}") if layer and number.isdecimal() else (name, "")


def classifier_of(network: nn.Module) -> nn.Module | None:
    """Return the layer whose input is the embedding: timm's ``get_classifier()``, else the last linear layer."""
    if declares_no_classifier(network):
        return None
    if callable(getattr(network, "get_classifier", None)):
        classifier = network.get_classifier()  # type: ignore[operator]
        if isinstance(classifier, nn.Linear):
            return classifier
    linear = [module for module in network.modules() if isinstance(module, nn.Linear)]
    return linear[-1] if linear else None


def declares_no_classifier(network: nn.Module) -> bool:
    """Return whether a network says that it has no classifier, as timm's do."""
    network = uncompiled(network)
    if getattr(network, "num_classes", None) == 0:
        return True
    get = getattr(network, "get_classifier", None)
    return callable(get) and isinstance(get(), nn.Identity)
