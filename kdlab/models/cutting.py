"""Where a network can be cut: what is registered around a layer, and what stands for the layers before it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor, nn

from kdlab.errors import InputError
from kdlab.models.surgery import layer_of


class Around(NamedTuple):
    """The layers beside one layer and beside those that hold it, in the order in which they are registered."""

    before: tuple[str, ...]
    after: tuple[str, ...]
    holders: tuple[str, ...]

    def parameters(self, network: nn.Module) -> Iterator[nn.Parameter]:
        """Parameters of the network that belong to none of these layers."""
        for name in self.holders:
            yield from network.get_submodule(name).parameters(recurse=False)


def around(network: nn.Module, layer: str) -> Around:
    """What is registered before and after a layer; lists of layers, which are never called, are taken apart.

    Raises:
        InputError: there is no such layer.
    """
    layer_of(network, layer)
    before: list[str] = []
    after: list[str] = []
    holders, module, place = [], network, ""
    for part in layer.split("."):
        holders.append(place.rstrip("."))
        names = [name for name, _ in module.named_children()]
        if part not in names:  # the same object under two names is listed under the first
            names = list(module._modules)
        position = names.index(part)
        before += [place + name for name in names[:position]]
        after += [place + name for name in names[position + 1 :]]
        module, place = module.get_submodule(part), f"{place}{part}."
    return Around(tuple(_called(network, before)), tuple(_called(network, after)), tuple(holders))


def _called(network: nn.Module, names: Sequence[str]) -> Iterator[str]:
    for name in names:
        module = network.get_submodule(name)
        if isinstance(module, (nn.ModuleList, nn.ModuleDict)):
            yield from _called(network, [f"{name}.{part}" for part, _ in module.named_children()])
        else:
            yield name


class Replay(nn.Module):
    """Stands in a branch for a layer of the trunk: before the fork it gives again what that layer has given.

    After the fork it is a copy of the layer, if the layer has neither parameters nor buffers (an activation that serves
    in many places).
    """

    def __init__(self, name: str, layer: nn.Module) -> None:
        super().__init__()
        self.name = name
        stateless = next(layer.parameters(), None) is None and next(layer.buffers(), None) is None
        self.own = copy.deepcopy(layer) if stateless else None
        self.kept: list[Any] = []

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the layer gave."""
        if self.kept:
            return self.kept.pop(0)
        if self.own is None:
            raise InputError(f"Layer {self.name!r} runs before the fork and after it too: name another fork.")
        return self.own(*args, **kwargs)


@contextmanager
def hooked(network: nn.Module, name: str, kind: str, hook: Callable[..., Any]) -> Iterator[None]:
    """A forward or forward_pre hook on one layer, for as long as the block runs.

    What it changes before the layer runs, an :class:`~kdlab.outputs.Observer` of that layer sees changed.
    """
    handle = getattr(network.get_submodule(name), f"register_{kind}_hook")(hook, prepend=kind == "forward_pre")
    try:
        yield
    finally:
        handle.remove()


def has_parameters(module: nn.Module) -> bool:
    """Whether there is anything to train in a layer."""
    return next(module.parameters(), None) is not None


def cloned(value: Any) -> Any:
    """The same tensors in memory of their own, in whatever holds them."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, Mapping):
        return {key: cloned(each) for key, each in value.items()}
    return tuple(map(cloned, value)) if isinstance(value, (tuple, list)) else value
