"""NST against plain loops."""

import math

import pytest
import torch

from kdlab.losses import NST
from tests.losses.slow import dot, draw, tapped

NO_TARGET = torch.zeros(1)


def kernel(a, b):
    vectors = [[channel.flatten().tolist() for channel in sample] for sample in (a, b)]
    values = [(dot(x, y) / (math.sqrt(dot(x, x)) * math.sqrt(dot(y, y)))) ** 2 for x in vectors[0] for y in vectors[1]]
    return sum(values) / len(values)


def slow(student, teacher):
    pairs = list(zip(student, teacher, strict=True))
    return sum(kernel(t, t) + kernel(s, s) - 2 * kernel(s, t) for s, t in pairs) / len(pairs)


def halved(maps):
    return torch.stack([maps[:, :, h::2, w::2] for h in (0, 1) for w in (0, 1)]).mean(0)


def test_value_over_layers_of_any_width_and_size():
    students = draw(3, 2, 4, 3, seed=1), draw(3, 4, 4, 4, seed=2), draw(3, 2, 2, 2, seed=3)
    teachers = draw(3, 5, 4, 3, seed=4), draw(3, 3, 2, 2, seed=5), draw(3, 2, 4, 4, seed=6)
    loss = NST()(tapped(*students), tapped(*teachers), NO_TARGET)
    expected = slow(students[0], teachers[0]) + slow(halved(students[1]), teachers[1])
    assert loss.item() == pytest.approx(expected + slow(students[2], halved(teachers[2])), rel=1e-11)


def test_the_order_of_channels_and_their_scale_do_not_matter():
    maps = draw(3, 4, 3, 3)
    assert NST()(tapped(7 * maps.flip(1)), tapped(maps), NO_TARGET).item() == pytest.approx(0, abs=1e-14)


def test_a_dead_channel_is_finite():
    student = draw(2, 3, 2, 2)
    student[:, 1] = 0
    student.requires_grad_()
    loss = NST()(tapped(student), tapped(draw(2, 3, 2, 2, seed=1)), NO_TARGET)
    loss.backward()
    assert loss.isfinite()
    assert student.grad.isfinite().all()
