"""Similarities and divergences in Python numbers, for the tests of losses on them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kdlab.outputs import Outputs

NONE = torch.zeros(4)


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def kl(teacher: list[float], student: list[float]) -> float:
    """KL of the softmax of two rows, in Python numbers."""
    (p, q) = ([math.exp(x) / sum(map(math.exp, row)) for x in row] for row in (teacher, student))
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def cosine(x: Tensor, y: Tensor) -> float:
    return float((x * y).sum() / x.square().sum().sqrt() / y.square().sum().sqrt())


def outputs(value: Tensor, tapped: bool = False) -> Outputs:
    logits = value.new_zeros(len(value), 2)
    return Outputs(logits, layers=(value,), names=("x",)) if tapped else Outputs(logits, embedding=value)
