"""DIST against plain loops."""

import math

import pytest
import torch

from kdlab.losses import DIST
from kdlab.outputs import Outputs
from tests.losses.slow import dot, draw, softmax

NO_TARGET = torch.zeros(1)


def rho(u, v):
    u, v = ([value - sum(x) / len(x) for value in x] for x in (u, v))
    return dot(u, v) / (math.sqrt(dot(u, u)) * math.sqrt(dot(v, v)) + 1e-8)


def slow(student, teacher, temperature, beta, gamma):
    q, p = ([softmax(row, temperature) for row in x.tolist()] for x in (student, teacher))
    columns = list(zip(zip(*q, strict=True), zip(*p, strict=True), strict=True))
    inter = 1 - sum(rho(a, b) for a, b in zip(q, p, strict=True)) / len(q)
    intra = 1 - sum(rho(a, b) for a, b in columns) / len(columns)
    return temperature**2 * (beta * inter + gamma * intra)


@pytest.mark.parametrize(("temperature", "beta", "gamma"), [(4, 1, 1), (1, 2, 0), (0.5, 0, 3)])
def test_value(temperature, beta, gamma):
    student, teacher = draw(6, 5, seed=1, scale=2), draw(6, 5, seed=2, scale=2)
    loss = DIST(temperature, beta, gamma)(Outputs(student), Outputs(teacher), NO_TARGET)
    assert loss.item() == pytest.approx(slow(student, teacher, temperature, beta, gamma), rel=1e-11)


def test_equal_networks_are_near_0():
    same = Outputs(draw(6, 5, seed=1, scale=2))
    assert DIST()(same, same, NO_TARGET).item() == pytest.approx(0, abs=1e-4)


def test_one_sample_has_no_spread_over_samples():
    student = draw(1, 5, seed=1).requires_grad_()
    loss = DIST(4.0, beta=0.0, gamma=1.0)(Outputs(student), Outputs(draw(1, 5, seed=2)), NO_TARGET)
    loss.backward()
    assert loss.item() == 16.0
    assert not student.grad.any()
