"""Cosine and smooth L1 against the formula in float64, position by position."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from kdlab.errors import InputError
from kdlab.losses import CosineSmoothL1
from kdlab.outputs import Outputs

NONE = torch.zeros(3)


def at(s: Tensor, t: Tensor, alpha: float, beta: float) -> float:
    """The loss of two vectors, in Python numbers."""
    xs, ys = s.tolist(), t.tolist()
    dot = sum(x * y for x, y in zip(xs, ys, strict=True))
    cosine = dot / math.sqrt(sum(x * x for x in xs)) / math.sqrt(sum(y * y for y in ys))
    apart = [abs(x - y) for x, y in zip(xs, ys, strict=True)]
    smooth = sum(d * d / 2 if d < 1 else d - 0.5 for d in apart) / len(apart)
    return alpha * (1 - cosine) + beta * smooth


def outputs(value: Tensor, tapped: bool = False) -> Outputs:
    logits = value.new_zeros(len(value), 2)
    return Outputs(logits, layers=(value,), names=("x",)) if tapped else Outputs(logits, embedding=value)


def draw(seed: int, *shape: int) -> Tensor:
    return 1.5 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("alpha", "beta"), [(0.5, 0.5), (0.9, 0.1), (1.0, 0.0)])
def test_value_on_embeddings(alpha: float, beta: float) -> None:
    s, t = draw(0, 3, 4), draw(1, 3, 4)
    expected = [at(s[b], t[b], alpha, beta) for b in range(3)]
    loss = CosineSmoothL1(alpha, beta, projection=None)
    assert loss(outputs(s), outputs(t), NONE).item() == pytest.approx(sum(expected) / 3, rel=1e-12)
    assert loss.per_sample(outputs(s), outputs(t), NONE).tolist() == pytest.approx(expected, rel=1e-12)


def test_value_on_tokens_and_maps_of_one_size() -> None:
    s, t = draw(0, 3, 6, 4), draw(1, 3, 6, 4)
    expected = sum(at(s[b, n], t[b, n], 0.9, 0.1) for b in range(3) for n in range(6)) / 18
    loss = CosineSmoothL1(0.9, 0.1, projection=None)
    assert loss(outputs(s, True), outputs(t, True), NONE).item() == pytest.approx(expected, rel=1e-12)
    s, t = (x.transpose(1, 2).unflatten(2, (2, 3)) for x in (s, t))
    assert loss(outputs(s, True), outputs(t, True), NONE).item() == pytest.approx(expected, rel=1e-12)


def test_a_map_is_resized_to_the_teachers() -> None:
    s, t = draw(0, 3, 4, 1, 1).expand(3, 4, 2, 2), draw(1, 3, 4, 3, 5)
    expected = (
        sum(at(s[b, :, 0, 0], t[b, :, i, j], 0.5, 0.5) for b in range(3) for i in range(3) for j in range(5)) / 45
    )  # a constant map stays one
    loss = CosineSmoothL1(projection=None)
    assert loss(outputs(s, True), outputs(t, True), NONE).item() == pytest.approx(expected, rel=1e-12)


def resized(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear, between the centers of the cells."""
    axes = []
    for before, after in zip(x.shape[2:], size, strict=True):
        places = ((torch.arange(after).double() + 0.5) * before / after - 0.5).clamp(0, before - 1)
        axes.append((1 - (places[:, None] - torch.arange(before)).abs()).clamp(min=0))
    return torch.einsum("ih,jw,bchw->bcij", *axes, x)


@pytest.mark.parametrize("size", [(2, 3), (4, 5), (3, 8)])
def test_any_map_is_resized_between_the_centers(size: tuple[int, int]) -> None:
    s, t = draw(0, 2, 4, *size), draw(1, 2, 4, 3, 5)
    r = resized(s, (3, 5))
    expected = (
        sum(at(r[b, :, i, j], t[b, :, i, j], 0.5, 0.5) for b in range(2) for i in range(3) for j in range(5)) / 30
    )
    loss = CosineSmoothL1(projection=None)
    assert loss(outputs(s, True), outputs(t, True), NONE).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_the_projection_comes_first(kind: str) -> None:
    torch.manual_seed(0)
    s, t = draw(0, 3, 5), draw(1, 3, 4)
    loss = CosineSmoothL1(projection=kind).double()
    loss(outputs(s), outputs(t), NONE)
    projected = loss.head(s)
    expected = sum(at(projected[b], t[b], 0.5, 0.5) for b in range(3)) / 3
    assert loss(outputs(s), outputs(t), NONE).item() == pytest.approx(expected, rel=1e-6)


def test_widths_that_differ_need_a_projection() -> None:
    with pytest.raises(InputError, match="5 wide and the teacher's 4: set projection"):
        CosineSmoothL1(projection=None)(outputs(draw(0, 3, 5)), outputs(draw(1, 3, 4)), NONE)
    with pytest.raises(InputError, match="no positions in common"):
        CosineSmoothL1()(outputs(draw(0, 3, 6, 5), True), outputs(draw(1, 3, 7, 5), True), NONE)
