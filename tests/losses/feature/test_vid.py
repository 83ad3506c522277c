"""VID against plain loops."""

import math

import pytest
import torch

from kdlab.errors import InputError
from kdlab.losses import VID
from tests.losses.slow import dot, draw, tapped

NO_TARGET = torch.zeros(1)


def predicted(vector, weights):
    for i, weight in enumerate(weights):
        vector = [dot(row, vector) for row in weight[:, :, 0, 0].tolist()]
        vector = [max(value, 0.0) for value in vector] if i < 2 else vector
    return vector


def slow(student, teacher, weights, scales):
    values = []
    for b, h, w in torch.cartesian_prod(*(torch.arange(n) for n in (len(teacher), *teacher.shape[2:]))).tolist():
        means = predicted(student[b, :, h, w].tolist(), weights)
        for mean, wanted, scale in zip(means, teacher[b, :, h, w].tolist(), scales, strict=True):
            variance = math.log(1 + math.exp(scale)) + 1e-5
            values.append(0.5 * ((mean - wanted) ** 2 / variance + math.log(variance)))
    return sum(values) / len(values)


def test_value_of_two_layers():
    students = draw(3, 2, 4, 3, seed=1), draw(3, 3, 4, 4, seed=2)
    teachers = draw(3, 5, 4, 3, seed=3), draw(3, 4, 2, 2, seed=4)
    loss = VID()
    loss(tapped(*students), tapped(*teachers), NO_TARGET)
    with torch.no_grad():
        for predictor in loss.predictors:
            predictor.log_scale.normal_()
    value = loss(tapped(*students), tapped(*teachers), NO_TARGET)
    halved = torch.stack([students[1][:, :, h::2, w::2] for h in (0, 1) for w in (0, 1)]).mean(0)
    expected = sum(
        slow(s, t, [predictor.mean[i].weight for i in (0, 2, 4)], predictor.log_scale.tolist())
        for s, t, predictor in zip((students[0], halved), teachers, loss.predictors, strict=True)
    )
    assert value.item() == pytest.approx(expected, rel=1e-11)


@pytest.mark.parametrize("variance", [0.001, 5.0, 2000.0])
def test_the_first_variance_is_the_one_given(variance):
    loss, maps = VID(variance), torch.zeros(2, 3, 4, 4)
    loss(tapped(maps), tapped(maps), NO_TARGET)
    given = torch.nn.functional.softplus(loss.predictors[0].log_scale) + 1e-5
    assert given.tolist() == pytest.approx([variance] * 3, rel=1e-4)


def test_variances_are_trained_and_the_value_can_be_negative():
    loss, maps = VID(0.01), torch.zeros(2, 3, 4, 4)
    value = loss(tapped(maps), tapped(maps), NO_TARGET)
    assert value < 0
    value.backward()
    assert loss.predictors[0].log_scale.grad.all()


@pytest.mark.parametrize("variance", [1e-5, 1e-4])
def test_variance_must_be_above_its_floor(variance):
    with pytest.raises(InputError, match="variance"):
        VID(variance)
