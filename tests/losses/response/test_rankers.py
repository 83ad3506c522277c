"""MarginMSE and DistillKL against plain loops."""

import pytest
import torch

from kdlab.losses import DistillKL, MarginMSE
from kdlab.outputs import Outputs
from tests.losses.slow import draw, kl, softmax

NO_TARGET = torch.zeros(1)


def test_margins_to_every_negative():
    student, teacher = draw(3, 4, seed=1), draw(3, 4, seed=2, scale=5)
    squares = [
        ((student[b, 0] - student[b, k]) - (teacher[b, 0] - teacher[b, k])).item() ** 2
        for b in range(3)
        for k in range(1, 4)
    ]
    value = MarginMSE()(Outputs(student), Outputs(teacher), NO_TARGET)
    assert value.item() == pytest.approx(sum(squares) / 9, rel=1e-12)
    moved = MarginMSE()(Outputs(student + 7), Outputs(teacher - 3), NO_TARGET)
    assert moved.item() == pytest.approx(value.item(), rel=1e-10)


def test_each_network_has_its_temperature():
    student, teacher = draw(3, 4, seed=1, scale=0.2), draw(3, 4, seed=2, scale=5)
    rows = zip(student.tolist(), teacher.tolist(), strict=True)
    expected = 0.05**2 * sum(kl(softmax(t, 2.0), softmax(s, 0.05)) for s, t in rows) / 3
    value = DistillKL(0.05, 2.0)(Outputs(student), Outputs(teacher), NO_TARGET)
    assert value.item() == pytest.approx(expected, rel=1e-12)
