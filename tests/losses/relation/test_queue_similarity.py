"""Queue similarity against the formula in float64, one by one."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kdlab.losses import QueueSimilarity
from tests.losses.relation.similarities import NONE, cosine, draw, kl, outputs


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
