"""Affinity mimicking, token similarity and queue similarity against the formulas in float64, one by one."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kdlab.losses import AffinityMimicking, QueueSimilarity, TokenSimilarity
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


def test_affinities_in_both_directions() -> None:
    s, t, tau = draw(0, 4, 3), draw(1, 4, 3), 0.5
    one = [[cosine(s[i], t[j]) / tau for j in range(4)] for i in range(4)]
    other = [[cosine(t[i], t[j]) / tau for j in range(4)] for i in range(4)]
    rows = sum(kl(other[i], one[i]) for i in range(4)) / 4
    columns = sum(kl([r[j] for r in other], [r[j] for r in one]) for j in range(4)) / 4
    value = AffinityMimicking(tau, projection=None)(outputs(s), outputs(t), NONE)
    assert value.item() == pytest.approx((rows + columns) / 2, rel=1e-10)
    assert AffinityMimicking(tau, projection=None)(outputs(t), outputs(t), NONE).item() == pytest.approx(0, abs=1e-12)


def test_similarities_of_tokens_within_an_image() -> None:
    s, t, tau = draw(0, 4, 5, 3), draw(1, 4, 5, 6), 0.3
    expected = 0.0
    for b in range(4):
        for n in range(5):
            one, other = ([cosine(x[b, n], x[b, m]) / tau for m in range(5)] for x in (s, t))
            expected += kl(other, one) / 20
    assert TokenSimilarity(tau)(outputs(s, True), outputs(t, True), NONE).item() == pytest.approx(expected, rel=1e-10)


def test_the_queue_holds_the_last_samples_of_past_batches() -> None:
    tau = 0.4
    loss = QueueSimilarity(size=6, temperature=tau, projection=None).double()
    past: list[Tensor] = []
    for step in range(4):
        s, t = draw(2 * step, 4, 3), draw(2 * step + 1, 4, 3)
        keys = [*t, *past]
        expected = 0.0
        for b in range(4):
            one, other = ([cosine(x[b], key) / tau for key in keys] for x in (s, t))
            expected += kl(other, one) / 4
        value = loss(outputs(s), outputs(t), NONE)
        assert value.item() == pytest.approx(expected, rel=1e-10), step
        loss.after_backward()
        past = [*past, *t][-6:]
    assert int(loss.past.count) == 16


def test_the_queue_rests_in_eval_mode() -> None:
    loss = QueueSimilarity(size=6, projection=None).double().eval()
    loss(outputs(draw(0, 4, 3)), outputs(draw(1, 4, 3)), NONE)
    loss.after_backward()
    assert int(loss.past.count) == 0


def test_batches_larger_than_the_queue_leave_their_last_samples() -> None:
    loss, t = QueueSimilarity(size=3, projection=None).double(), draw(1, 4, 3)
    loss(outputs(draw(0, 4, 3)), outputs(t), NONE)
    loss.after_backward()
    assert torch.equal(loss.past.rows.sort(0).values, F.normalize(t[1:], dim=1).sort(0).values)
