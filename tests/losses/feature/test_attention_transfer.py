"""AttentionTransfer against plain loops."""

import math

import pytest
import torch

from kdlab.errors import InputError
from kdlab.losses import AttentionTransfer
from tests.losses.slow import dot, draw, tapped

NO_TARGET = torch.zeros(1)


def attention(sample, power):
    channels, height, width = sample.shape
    cells = [(h, w) for h in range(height) for w in range(width)]
    values = [sum(abs(sample[c, h, w].item()) ** power for c in range(channels)) / channels for h, w in cells]
    return [value / math.sqrt(dot(values, values)) for value in values]


def slow(student, teacher, power=2):
    total = 0.0
    for s, t in zip(student, teacher, strict=True):
        a, b = attention(s, power), attention(t, power)
        total += sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) / len(a)
    return total / len(student)


def halved(maps):
    return torch.stack([maps[:, :, h::2, w::2] for h in (0, 1) for w in (0, 1)]).mean(0)


@pytest.mark.parametrize("power", [1, 2, 3.5])
def test_value(power):
    student, teacher = draw(3, 2, 4, 3, seed=1), draw(3, 5, 4, 3, seed=2)
    loss = AttentionTransfer(power)(tapped(student), tapped(teacher), NO_TARGET)
    assert loss.item() == pytest.approx(slow(student, teacher, power), rel=1e-11)


def test_layers_are_summed_and_the_larger_map_is_pooled():
    students, teachers = (
        (draw(3, 2, 4, 4, seed=1), draw(3, 2, 2, 2, seed=3)),
        (draw(3, 5, 2, 2, seed=2), draw(3, 4, 4, 4)),
    )
    loss = AttentionTransfer()(tapped(*students), tapped(*teachers), NO_TARGET)
    expected = slow(halved(students[0]), teachers[0]) + slow(students[1], halved(teachers[1]))
    assert loss.item() == pytest.approx(expected, rel=1e-11)


def test_a_dead_map_has_no_gradient_but_a_finite_value():
    student = torch.zeros(2, 3, 2, 2, requires_grad=True)
    loss = AttentionTransfer()(tapped(student), tapped(torch.rand(2, 3, 2, 2)), NO_TARGET)
    loss.backward()
    assert loss.isfinite()
    assert not student.grad.any()


def test_vectors_raise_input_error():
    with pytest.raises(InputError, match=r"'fc' gives \(2, 3\).*'head' gives \(2, 3\)"):
        AttentionTransfer()(
            tapped(torch.ones(2, 3), names=("fc",)), tapped(torch.ones(2, 3), names=("head",)), NO_TARGET
        )


@pytest.mark.parametrize("power", [0.5, 0, -2, float("inf")])
def test_bad_power(power):
    with pytest.raises(InputError, match="power"):
        AttentionTransfer(power)
