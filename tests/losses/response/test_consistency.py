"""Consistency against plain loops."""

import pytest
import torch

from kdlab.losses import Consistency
from kdlab.outputs import Outputs
from tests.losses.slow import draw, softmax


def test_value() -> None:
    student, teacher = draw(4, 5, seed=1, scale=2), draw(4, 5, seed=2, scale=2)
    total = 0.0
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        total += sum((a - b) ** 2 for a, b in zip(softmax(s), softmax(t), strict=True)) / 5
    loss = Consistency()
    value = loss(Outputs(student), Outputs(teacher), torch.zeros(4))
    assert value.item() == pytest.approx(total / 4, rel=1e-12)
    assert loss.per_sample(Outputs(student), Outputs(teacher), torch.zeros(4)).shape == (4,)
