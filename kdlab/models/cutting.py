"""Cutting a network at a layer: the layers around it, and replays of the layers before it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor, nn

from kdlab.errors import InputError
from kdlab.models.surgery import layer_of


class Around(NamedTuple):
    """The layers beside a layer and beside the modules that contain it, in order of registration."""

    before: tuple[str, ...]
    after: tuple[str, ...]
    holders: tuple[str, ...]

    def parameters(self, network: nn.Module) -> Iterator[nn.Parameter]:
        """Yield the parameters that the containing modules hold outside of any layer."""
        for name in self.holders:
            yield from network.get_submodule(name).parameters(recurse=False)


def around(network: nn.Module, layer: str) -> Around:
    """Return what is registered before and after a layer.

    ``ModuleList`` and ``ModuleDict``, which are never called, are replaced by their elements.

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
    """Yield the names with containers replaced by their elements."""
    for name in names:
        module = network.get_submodule(name)
        if isinstance(module, (nn.ModuleList, nn.ModuleDict)):
            yield from _called(network, [f"{name}.{part}" for part, _ in module.named_children()])
        else:
            yield name


class Replay(nn.Module):
    """A placeholder in a branch for a layer of the trunk, which returns that layer's recorded outputs again.

    After the fork it acts as a copy of the layer if the layer has neither parameters nor buffers (an activation that is
    used in many places).
    """

    def __init__(self, name: str, layer: nn.Module) -> None:
        super().__init__()
        self.name = name
        has_state = has_parameters(layer) or next(layer.buffers(), None) is not None
        # The names of these attributes enter the teacher cache's key.
        self.own = None if has_state else copy.deepcopy(layer)
        self.kept: list[Any] = []  # outputs of the layer in this forward, first to last

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the layer's next recorded output."""
        if self.kept:
            return self.kept.pop(0)
        if self.own is None:
            raise InputError(f"Layer {self.name!r} runs both before and after the fork: choose another fork.")
        return self.own(*args, **kwargs)


@contextmanager
def hooked(network: nn.Module, name: str, kind: str, hook: Callable[..., Any]) -> Iterator[None]:
    """Register a forward or forward_pre hook on one layer while the block runs.

    A forward_pre hook runs first, so an :class:`~kdlab.outputs.Observer` of the layer sees what it changed.
    """
    handle = getattr(network.get_submodule(name), f"register_{kind}_hook")(hook, prepend=kind == "forward_pre")
    try:
        yield
    finally:
        handle.remove()


def has_parameters(module: nn.Module) -> bool:
    """Return whether a layer has parameters."""
    return next(module.parameters(), None) is not None


def cloned(value: Any) -> Any:
    """Return copies of the tensors in a value, in the same containers."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, Mapping):
        return {key: cloned(part) for key, part in value.items()}
    return tuple(map(cloned, value)) if isinstance(value, (tuple, list)) else value
