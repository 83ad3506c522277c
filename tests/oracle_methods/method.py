"""One method of an oracle file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from kdlab.outputs import Outputs

Arrays = dict[str, Tensor]


def side(arrays: Arrays, name: str) -> Outputs:
    """The outputs of ``name`` ("student" or "teacher"): its ``_logits``, ``_feature[_i]`` and ``_embedding``."""
    layers = [value for key, value in arrays.items() if key.startswith(f"{name}_feature")]
    embedding = arrays.get(f"{name}_embedding")
    some = next(value for key, value in arrays.items() if key.startswith(name))
    logits = arrays.get(f"{name}_logits", some.new_zeros(len(some), 1))
    return Outputs(logits, tuple(layers), embedding, arrays.get("mask"))


@dataclass(frozen=True)
class Method:
    """One method: its loss from hyper-parameters, the file's names of its parameters, its outputs from the arrays.

    ``setup`` prepares the loss as at the start of a run; ``compute`` gives the value without an Outputs, where the case
    covers a part of a method.
    """

    build: Callable[[dict[str, Any]], nn.Module]
    parameters: dict[str, str] = field(default_factory=dict)
    outputs: Callable[[Arrays], tuple[Outputs, Outputs]] = lambda arrays: (
        side(arrays, "student"),
        side(arrays, "teacher"),
    )
    target: Callable[[Arrays], Tensor] = lambda arrays: arrays.get("labels", torch.zeros(1))
    setup: Callable[[Any, Arrays], None] = lambda loss, arrays: None
    compute: Callable[[Any, Arrays], Tensor] | None = None
