"""Slow references' common ground: plain Python numbers and loops, nothing of kdlab's own mathematics."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from kdlab.outputs import Outputs

Row = Sequence[float]


def softmax(row: Row, temperature: float = 1.0) -> list[float]:
    """Probabilities of one row of logits."""
    top = max(row)
    powers = [math.exp((value - top) / temperature) for value in row]
    return [power / sum(powers) for power in powers]


def kl(p: Row, q: Row) -> float:
    """Divergence of two distributions, p first."""
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def smooth_l1(u: float) -> float:
    """Half the square near 0, linear beyond 1."""
    return u * u / 2 if abs(u) < 1 else abs(u) - 0.5


def dot(a: Row, b: Row) -> float:
    """Scalar product."""
    return sum(x * y for x, y in zip(a, b, strict=True))


def draw(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    """Normal float64 numbers."""
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tapped(*layers: Tensor, names: tuple[str, ...] = ()) -> Outputs:
    """Outputs with these layers; the logits say nothing."""
    return Outputs(layers[0].new_zeros(len(layers[0]), 2), layers, names=names)


def embedded(value: Tensor) -> Outputs:
    """Outputs with this embedding; the logits say nothing."""
    return Outputs(value.new_zeros(len(value), 2), embedding=value)
