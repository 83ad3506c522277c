"""KDSVD against power iteration and plain loops."""

import math
from itertools import pairwise

import pytest
import torch

from kdlab.errors import InputError
from kdlab.losses import KDSVD
from tests.losses.slow import dot, draw, tapped

NO_TARGET = torch.zeros(1)


def singular(sample, count):
    """Right singular vectors and values of one map as (HW, C), one after the other, by power iteration."""
    columns = [channel.flatten().tolist() for channel in sample]
    gram = [[dot(a, b) for b in columns] for a in columns]
    vectors, values = [], []
    for _ in range(count):
        vector = [1.0 + 0.1 * i for i in range(len(columns))]
        for _ in range(3000):
            for found in vectors:
                overlap = dot(vector, found)
                vector = [a - overlap * b for a, b in zip(vector, found, strict=True)]
            vector = [dot(row, vector) for row in gram]
            length = math.sqrt(dot(vector, vector))
            vector = [a / length for a in vector]
        vectors.append(vector)
        values.append(math.sqrt(length))
    return vectors, values


def aligned(student, teacher, count):
    theirs, values = singular(teacher, count)
    ours, _ = singular(student, min(count + 3, len(student)))
    length = math.sqrt(dot(values, values))
    result = []
    for vector, value in zip(theirs, values, strict=True):
        vector = [math.copysign(a, sum(vector) * a) for a in vector]
        best = max(ours, key=lambda each: abs(dot(each, vector)))
        best = [math.copysign(1, dot(best, vector)) * a for a in best]
        result.append(([a * value / length for a in best], [a * value / length for a in vector]))
    return result


def slow(students, teachers, count):
    total = 0.0
    for b in range(len(students[0])):
        layers = [aligned(s[b], t[b], count) for s, t in zip(students, teachers, strict=True)]
        for before, after in pairwise(layers):
            for (s, t), (s_next, t_next) in zip(before, after, strict=True):
                for i in range(len(s_next)):
                    for j in range(len(s)):
                        ours = math.exp(-((s_next[i] - s[j]) ** 2) / 8)
                        total += (ours - math.exp(-((t_next[i] - t[j]) ** 2) / 8)) ** 2
    return total / len(students[0])


@pytest.mark.full
@pytest.mark.parametrize("count", [1, 2])
def test_value(count):
    students, teachers = ([draw(2, c, 3, 3, seed=c + i) for c in (3, 5, 4)] for i in (0, 10))
    value = KDSVD(count)(tapped(*students), tapped(*teachers), NO_TARGET)
    assert value.item() == pytest.approx(slow(students, teachers, count), rel=1e-6)


def test_a_student_of_the_opposite_sign_is_the_same():
    students, teachers = ([draw(2, c, 3, 3, seed=c + i) for c in (3, 5)] for i in (0, 10))
    values = [KDSVD()(tapped(*(sign * s for s in students)), tapped(*teachers), NO_TARGET) for sign in (1, -1)]
    assert values[0].item() == pytest.approx(values[1].item(), rel=1e-10)


@pytest.mark.parametrize("shape", [(2, 3, 4, 4), (2, 6, 2, 2)])
@pytest.mark.parametrize("content", ["zero", "one rank", "equal values"])
def test_degenerate_maps_have_finite_gradients(shape, content):
    maps = {
        "zero": torch.zeros(shape),
        "one rank": torch.ones(shape),
        "equal values": torch.eye(shape[1], shape[2] * shape[3]).reshape(1, *shape[1:]).expand(shape).clone(),
    }[content].requires_grad_()
    teacher = draw(*shape).float()
    loss = KDSVD()(tapped(maps, maps), tapped(teacher, teacher), NO_TARGET)
    loss.backward()
    assert loss.isfinite()
    assert maps.grad.isfinite().all()


def test_incompatible_inputs_raise_input_error():
    one, other = draw(2, 3, 4, 4), draw(2, 5, 4, 4)
    with pytest.raises(InputError, match="at least two"):
        KDSVD()(tapped(one), tapped(one), NO_TARGET)
    with pytest.raises(InputError, match="equal channels"):
        KDSVD()(tapped(one, one), tapped(one, other), NO_TARGET)
    with pytest.raises(InputError, match="at least 4 channels and positions"):
        KDSVD(4)(tapped(one, one), tapped(one, one), NO_TARGET)


def test_either_side_can_have_too_few_positions():
    maps, small = draw(2, 3, 4, 4), draw(2, 3, 1, 1)
    for one, other in ((maps, small), (small, maps)):
        with pytest.raises(InputError, match="at least 2 channels and positions"):
            KDSVD(2)(tapped(one, one), tapped(other, other), NO_TARGET)


def test_the_gradient_with_fewer_positions_than_channels():
    student, teacher = [draw(2, 6, 2, 2, seed=i).requires_grad_() for i in (1, 2)], [draw(2, 6, 2, 2, seed=3)] * 2
    assert torch.autograd.gradcheck(lambda *s: KDSVD()(tapped(*s), tapped(*teacher), NO_TARGET), student)
