"""ITRD against plain loops."""

import math

import pytest
import torch

from kdlab.errors import InputError
from kdlab.losses import ITRD
from tests.losses.slow import dot, draw, embedded

NO_TARGET = torch.zeros(1)


def standard(column):
    mean = sum(column) / len(column)
    spread = math.sqrt(sum((value - mean) ** 2 for value in column) / (len(column) - 1))
    return [(value - mean) / spread for value in column]


def cosines(rows):
    return [[dot(a, b) / math.sqrt(dot(a, a) * dot(b, b)) for b in rows] for a in rows]


def squares_over_trace(matrix):
    trace = sum(matrix[i][i] for i in range(len(matrix)))
    return sum((value / trace) ** 2 for row in matrix for value in row)


def slow(rows, teacher, correlation, mutual, alpha):
    columns = [list(map(standard, zip(*side, strict=True))) for side in (rows, teacher)]
    reached = [dot(a, b) / len(rows) for a, b in zip(*columns, strict=True)]
    first = math.log2(sum(abs(c - 1) ** (2 * alpha) for c in reached))
    ours, theirs = cosines(rows), cosines(teacher)
    both = [[a * b for a, b in zip(x, y, strict=True)] for x, y in zip(ours, theirs, strict=True)]
    return correlation * first + mutual * (squares_over_trace(ours) - squares_over_trace(both))


@pytest.mark.parametrize("options", [(2.0, 1.0, 1.5), (1.0, 0.0, 1.01), (0.0, 3.0, 1.5)])
def test_value(options):
    student, teacher = draw(6, 4, seed=1), draw(6, 5, seed=2)
    loss = ITRD(*options)
    got = loss(embedded(student), embedded(teacher), NO_TARGET).item()
    rows = [
        [
            dot(weights, row) + bias
            for weights, bias in zip(loss.embed.weight.tolist(), loss.embed.bias.tolist(), strict=True)
        ]
        for row in student.tolist()
    ]
    assert got == pytest.approx(slow(rows, teacher.tolist(), *options), rel=1e-9)


def test_the_defaults_are_the_recipe():
    loss = ITRD()
    assert (loss.correlation, loss.mutual, loss.alpha) == (2.0, 1.0, 1.5)


def test_constant_feature_counts_as_uncorrelated():
    student, teacher = draw(6, 4, seed=1).requires_grad_(), draw(6, 5, seed=2)
    teacher[:, 3] = 0.0
    torch.manual_seed(0)
    loss = ITRD(1.0, 0.0, 1.5)
    with_it = loss(embedded(student), embedded(teacher), NO_TARGET)
    with_it.backward()
    assert student.grad.isfinite().all()
    less = ITRD(1.0, 0.0, 1.5)
    kept = [0, 1, 2, 4]
    less(embedded(student), embedded(teacher[:, kept]), NO_TARGET)
    with torch.no_grad():
        less.embed.weight.copy_(loss.embed.weight[kept])
        less.embed.bias.copy_(loss.embed.bias[kept])
    without = less(embedded(student), embedded(teacher[:, kept]), NO_TARGET)
    assert 2 ** with_it.item() == pytest.approx(2 ** without.item() + 1, rel=1e-9)


def test_batch_of_one_raises_input_error():
    with pytest.raises(InputError, match="at least 2 samples"):
        ITRD()(embedded(draw(1, 3)), embedded(draw(1, 3)), NO_TARGET)


def test_a_teacher_of_zeros_is_finite():
    student = draw(4, 3).requires_grad_()
    value = ITRD()(embedded(student), embedded(torch.zeros(4, 5).double()), NO_TARGET)
    value.backward()
    assert value.isfinite()
    assert student.grad.isfinite().all()


def test_the_scale_of_the_teacher_does_not_matter():
    student, teacher, loss = draw(6, 4, seed=1), draw(6, 5, seed=2), ITRD()
    values = [loss(embedded(student), embedded(scale * teacher), NO_TARGET).item() for scale in (1.0, 1e-6)]
    assert values[0] == pytest.approx(values[1], rel=1e-9)
