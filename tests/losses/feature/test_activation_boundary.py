"""ActivationBoundary against plain loops."""

import pytest
import torch

from kdlab.errors import InputError
from kdlab.losses import ActivationBoundary
from tests.losses.slow import draw, tapped

NO_TARGET = torch.zeros(1)


def slow(students, teachers, margin):
    total = 0.0
    for i, (student, teacher) in enumerate(zip(students, teachers, strict=True)):
        for s, t in zip(student.flatten().tolist(), teacher.flatten().tolist(), strict=True):
            wrong = (s + margin) ** 2 if t <= 0 and s > -margin else (s - margin) ** 2 if t > 0 and s <= margin else 0
            total += wrong / 2 ** (len(students) - 1 - i)
    return total / len(students[0]) * 3 / 1000


@pytest.mark.parametrize("margin", [0.3, 1.0])
def test_value_of_three_layers_of_equal_shapes(margin):
    students, teachers = ([draw(3, c, 4, 2, seed=c + i) for c in (2, 4, 3)] for i in (0, 10))
    loss = ActivationBoundary(margin)
    value = loss(tapped(*students), tapped(*teachers), NO_TARGET)
    assert value.item() == pytest.approx(slow(students, teachers, margin), rel=1e-11)
    assert not list(loss.parameters())


@pytest.mark.parametrize("teacher", [(3, 5, 4, 4), (3, 2, 2, 2), (3, 5, 8, 8)])
def test_other_shapes_are_connected_without_relu(teacher):
    student, teacher, loss = draw(3, 2, 4, 4, seed=1), draw(*teacher, seed=2), ActivationBoundary()
    value = loss(tapped(student), tapped(teacher), NO_TARGET)
    value.backward()
    conv = loss.connectors[0].conv
    out = conv(student)
    assert out.shape == teacher.shape
    normal = (out - out.mean((0, 2, 3), keepdim=True)) / (out.var((0, 2, 3), correction=0, keepdim=True) + 1e-5).sqrt()
    assert value.item() == pytest.approx(slow([normal], [teacher], 1.0), rel=1e-9)
    assert conv.weight.grad.any()


def test_only_the_signs_of_the_teacher_matter():
    student, teacher = draw(3, 2, 4, 4, seed=1), draw(3, 2, 4, 4, seed=2)
    loss = ActivationBoundary()
    assert loss(tapped(student), tapped(teacher), NO_TARGET) == loss(tapped(student), tapped(9 * teacher), NO_TARGET)
    assert loss(tapped(1.01 * teacher.sign()), tapped(teacher), NO_TARGET) == 0


def test_incompatible_map_sizes_raise_input_error():
    with pytest.raises(InputError, match=r"No convolution.*\(2, 3, 4, 4\).*\(2, 3, 5, 5\)"):
        ActivationBoundary()(tapped(torch.ones(2, 3, 4, 4)), tapped(torch.ones(2, 3, 5, 5)), NO_TARGET)


def test_margin_must_be_positive():
    with pytest.raises(InputError, match="margin"):
        ActivationBoundary(0)


def test_a_teacher_of_0_is_inactive():
    zero, loss = torch.zeros(1, 1, 1, 1).double(), ActivationBoundary(1.0)
    for student, expected in ((-2.0, 0.0), (0.5, 1.5**2)):
        value = loss(tapped(zero + student), tapped(zero), NO_TARGET)
        assert value.item() == pytest.approx(expected * 3 / 1000)
