"""PKT against plain loops."""

import math

import pytest
import torch

from kdlab.errors import InputError
from kdlab.losses import PKT
from tests.losses.slow import dot, draw, embedded, tapped

NO_TARGET = torch.zeros(1)


def neighbors(x, eps):
    rows, places = x.flatten(1).tolist(), range(len(x))
    lengths = [math.sqrt(dot(row, row)) + eps for row in rows]
    near = [[(dot(rows[i], rows[j]) / (lengths[i] * lengths[j]) + 1) / 2 for j in places] for i in places]
    return [[value / sum(row) for value in row] for row in near]


def slow(student, teacher, eps=1e-7):
    ours, theirs, places = neighbors(student, eps), neighbors(teacher, eps), range(len(student))
    terms = [theirs[i][j] * math.log((theirs[i][j] + eps) / (ours[i][j] + eps)) for i in places for j in places]
    return sum(terms) / len(terms)


@pytest.mark.parametrize("epsilon", [1e-7, 0.1])
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_value(batch, epsilon):
    student, teacher = draw(batch, 4, seed=1), draw(batch, 2, 3, 3, seed=2)
    got = PKT(epsilon)(embedded(student), tapped(teacher), NO_TARGET).item()
    assert got == pytest.approx(slow(student, teacher, epsilon), rel=1e-9, abs=1e-12)


def test_rounding_gives_no_negative_probability():
    x = draw(20, 64, seed=3).float()
    student = torch.cat([x, -x]).requires_grad_()
    cosines = torch.nn.functional.normalize(student) @ torch.nn.functional.normalize(student).T
    assert cosines.min() < -1
    value = PKT(1e-12)(embedded(student), embedded(draw(40, 8).float()), NO_TARGET)
    value.backward()
    assert value.isfinite()
    assert student.grad.isfinite().all()


def test_a_sample_of_zeros_has_a_finite_gradient():
    student = draw(4, 3)
    student[1] = 0
    student.requires_grad_()
    value = PKT()(embedded(student), embedded(draw(4, 8)), NO_TARGET)
    value.backward()
    assert value.item() == pytest.approx(slow(student.detach(), draw(4, 8)), rel=1e-9)
    assert student.grad.isfinite().all()


def test_empty_batch_raises_input_error():
    with pytest.raises(InputError, match="batch is empty"):
        PKT()(embedded(draw(0, 3)), embedded(draw(0, 3)), NO_TARGET)
