"""Low-rank adapters of an exported student, merged into its weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from kdlab.errors import InputError
from kdlab.models.lora import merged
from kdlab.models.weights import fitting

LORA = ("kdlab.models.lora", "kdlab.models.lora.lora")
Build = Callable[[Mapping[str, Any]], nn.Module]


def without_adapters(
    network: Mapping[str, Any], tensors: Mapping[str, Tensor], build: Build | None
) -> tuple[dict[str, Any], Mapping[str, Tensor]]:
    """Return config and tensors of a network with its adapters merged; of one without adapters the same.

    Args:
        network: its class path and arguments.
        tensors: its trained weights.
        build: makes a network of a config.

    Raises:
        InputError: the tensors are not those of the network, or there are adapters and no ``build``.
    """
    plain = _plain(network)
    if plain == network:
        return dict(network), tensors
    if build is None:
        raise InputError("The student has low-rank adapters: give export() a function that builds it, to merge them.")
    adapted = build(network)
    adapted.load_state_dict(fitting(adapted, tensors, "", "The checkpoint"), strict=False)
    return plain, merge_adapters(adapted).state_dict()


def _plain(value: Any) -> Any:
    """Return a config in which networks with adapters are the networks that these are on."""
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    if not isinstance(value, Mapping):
        return value
    if value.get("class_path") in LORA:
        return _plain(value["init_args"]["network"])
    return {key: _plain(inner) for key, inner in value.items()}


def merge_adapters(network: nn.Module) -> nn.Module:
    """Return a network with the adapters in all its parts merged into their weights, in place."""
    if hasattr(network, "merge_and_unload"):  # peft's
        return merged(network)
    for name, child in network.named_children():
        setattr(network, name, merge_adapters(child))
    return network
