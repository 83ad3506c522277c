"""Names and output shapes of the layers that a loss can tap."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from kdlab.errors import InputError
from kdlab.outputs import heads_of, layer_names


def shapes(network: nn.Module, shape: Sequence[int]) -> list[tuple[str, nn.Module, str]]:
    """Return (name, module, output shape without the batch) of every layer that runs on an input of ``shape``.

    A layer that runs several times has a row for each call, ``NAME@0``, ``NAME@1``.
    """
    seen: dict[str, list[str]] = {}

    def note(name: str, module: nn.Module, args: object, output: object) -> None:
        text = shape_text(output.shape[1:]) if isinstance(output, Tensor) else type(output).__name__
        seen.setdefault(name, []).append(text)

    modules = taps(network)
    handles = [module.register_forward_hook(partial(note, name)) for name, module in modules.items()]
    try:
        with torch.no_grad():
            network.eval()(torch.zeros(2, *shape))
    except Exception as error:
        text = f"{type(network).__name__} does not take an input of {shape_text(shape)}"
        raise InputError(f"{text} ({str(error).strip().splitlines()[0]}): give its shape with --input.") from error
    finally:
        for handle in handles:
            handle.remove()
    return [
        (name if len(seen[name]) == 1 else f"{name}@{call}", module, text)
        for name, module in modules.items()
        for call, text in enumerate(seen.get(name, ()))
    ]


def taps(network: nn.Module) -> dict[str, nn.Module]:
    """Return every layer by the name under which a loss taps it.

    Of a network with several outputs these are the main output's layers that every other output has as well.
    """
    modules, heads = layer_names(network), heads_of(network)
    if len(heads) == 1:
        return modules
    inner = [name.partition(".")[2] for name in modules]  # such a network holds another under a name of its own
    names = dict.fromkeys(["feature", *modules, *filter(None, inner)])
    layers = {name: [head.layer(name) for head in heads.values()] for name in names}
    return {name: modules[paths[0]] for name, paths in layers.items() if all(path in modules for path in paths)}


def shape_text(shape: Sequence[int]) -> str:
    """Return a shape as text: 64 x 8 x 8."""
    return " x ".join(map(str, shape)) or "scalar"
