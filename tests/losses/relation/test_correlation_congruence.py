"""CorrelationCongruence, both forms, against plain loops and against the released code's value."""

import math

import pytest
import torch

from kdlab.errors import InputError
from kdlab.losses import CorrelationCongruence
from tests.losses.slow import dot, draw, embedded
from tests.oracle_inputs import make

NO_TARGET = torch.zeros(1)


def mapped(linear, row):
    return [
        dot(weights, row) + bias for weights, bias in zip(linear.weight.tolist(), linear.bias.tolist(), strict=True)
    ]


def test_value_of_neighbors():
    student, teacher = draw(5, 4, seed=1), draw(5, 7, seed=2)
    loss = CorrelationCongruence(width=3)
    got = loss(embedded(student), embedded(teacher), NO_TARGET).item()
    errors = [
        [a - b for a, b in zip(mapped(loss.embed_student, x), mapped(loss.embed_teacher, y), strict=True)]
        for x, y in zip(student.tolist(), teacher.tolist(), strict=True)
    ]
    products = [abs(a) * abs(b) for i in range(4) for a, b in zip(errors[i], errors[i + 1], strict=True)]
    assert got == pytest.approx(sum(products) / 4, rel=1e-10)


def kernel(x, gamma, order):
    rows = [[value / math.sqrt(dot(row, row)) for value in row] for row in x.tolist()]
    return [
        [
            math.exp(-2 * gamma) * sum((2 * gamma * dot(a, b)) ** p / math.factorial(p) for p in range(order + 1))
            for b in rows
        ]
        for a in rows
    ]


@pytest.mark.parametrize(("gamma", "order"), [(0.4, 2), (1.3, 1), (0.7, 12)])
def test_value_of_the_kernel(gamma, order):
    student, teacher = draw(5, 4, seed=1), draw(5, 7, seed=2)
    loss = CorrelationCongruence(kernel="rbf", gamma=gamma, order=order)
    got = loss(embedded(student), embedded(teacher), NO_TARGET).item()
    ours, theirs = kernel(student, gamma, order), kernel(teacher, gamma, order)
    squares = [(ours[i][j] - theirs[i][j]) ** 2 for i in range(5) for j in range(5)]
    assert got == pytest.approx(sum(squares) / 25, rel=1e-10)
    assert not list(loss.parameters())


def test_a_long_series_is_the_gaussian_kernel():
    student, teacher = draw(5, 4, seed=1), draw(5, 7, seed=2)
    x, y = (torch.nn.functional.normalize(each) for each in (student, teacher))
    expected = ((-0.6 * torch.cdist(x, x) ** 2).exp() - (-0.6 * torch.cdist(y, y) ** 2).exp()).square().mean()
    got = CorrelationCongruence(kernel="rbf", gamma=0.6, order=30)(embedded(student), embedded(teacher), NO_TARGET)
    assert got.item() == pytest.approx(expected.item(), rel=1e-9)


def test_the_kernel_has_the_value_of_the_released_code():
    """Knowledge-Distillation-Zoo's, on the linear maps of case pub-cc-01 of the oracle file."""
    shapes = [("x", (8, 12), 1.0), ("y", (8, 20), 1.0)]
    shapes += [("wx", (6, 12), 0.3), ("bx", (6,), 0.1), ("wy", (6, 20), 0.3), ("by", (6,), 0.1)]
    inputs = [{"name": name, "shape": shape, "kind": "normal", "scale": scale} for name, shape, scale in shapes]
    x, y, wx, bx, wy, by = map(torch.as_tensor, make({"seed": 20275755, "inputs": inputs}).values())
    got = CorrelationCongruence(kernel="rbf")(embedded(x @ wx.T + bx), embedded(y @ wy.T + by), NO_TARGET).item()
    assert got == pytest.approx(0.05735887735188157, rel=1e-9)


def test_one_sample_has_no_pair():
    student = draw(1, 3).requires_grad_()
    loss = CorrelationCongruence()
    value = loss(embedded(student), embedded(draw(1, 3)), NO_TARGET)
    value.backward()
    assert value.item() == 0
    assert all(not each.grad.any() for each in (student, *loss.parameters()))


def test_incompatible_inputs_raise_input_error():
    with pytest.raises(InputError, match="batch is empty"):
        CorrelationCongruence()(embedded(draw(0, 3)), embedded(draw(0, 3)), NO_TARGET)
    with pytest.raises(InputError, match="batch is empty"):
        CorrelationCongruence("rbf")(embedded(draw(0, 3)), embedded(draw(0, 3)), NO_TARGET)
    with pytest.raises(InputError, match="'rbf' or None, not 'linear'"):
        CorrelationCongruence("linear")
