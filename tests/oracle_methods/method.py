"""One method of an oracle file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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

    The hyper-parameters have the inputs' ``shapes`` by name and the reference's ``symbol`` besides. Names of
    parameters may depend on the arrays, of which a case may have any number. ``setup`` prepares the loss as at the
    start of a run; ``compute`` gives the value without an Outputs, where the case covers a part of a method.
    """

    build: Callable[[dict[str, Any]], nn.Module]
    parameters: dict[str, str] | Callable[[Arrays], dict[str, str]] = field(default_factory=dict)
    outputs: Callable[[Arrays], tuple[Outputs, Outputs]] = lambda arrays: (
        side(arrays, "student"),
        side(arrays, "teacher"),
    )
    target: Callable[[Arrays], Tensor] = lambda arrays: arrays.get("labels", torch.zeros(1))
    setup: Callable[[Any, Arrays], None] = lambda loss, arrays: None
    compute: Callable[[Any, Arrays], Tensor] | None = None

    def names(self, arrays: Arrays) -> dict[str, str]:
        """kdlab's names of the parameters that a case gives, by the file's."""
        names = self.parameters(arrays) if callable(self.parameters) else self.parameters
        return {theirs: ours for theirs, ours in names.items() if theirs in arrays}


class Weighted(nn.Module):
    """A weighted sum of losses, without those of weight 0."""

    def __init__(self, *parts: tuple[float, nn.Module]) -> None:
        super().__init__()
        self.weights = [weight for weight, _ in parts]
        self.losses = nn.ModuleList(loss for _, loss in parts)

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        terms = [w * loss(student, teacher, target) for w, loss in zip(self.weights, self.losses, strict=True) if w]
        return torch.stack(terms).sum()


def count(arrays: Mapping[str, Any], prefix: str) -> int:
    """How many arrays begin like this."""
    return sum(name.startswith(prefix) for name in arrays)
