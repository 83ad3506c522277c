"""The learned temperature."""

import math

import pytest
import torch

from kdlab.errors import InputError
from kdlab.losses import DKD, TTM, CurriculumTemperature, LogitStandardization, SoftTargets
from kdlab.outputs import Outputs
from tests.losses.slow import draw, kl, softmax

LABELS = torch.tensor([0, 4, 2, 1])
SIDES = Outputs(draw(4, 5, seed=1, scale=3)), Outputs(draw(4, 5, seed=2, scale=3))


def slow(theta, t_start=1.0, t_end=20.0):
    temperature = t_start + t_end / (1 + math.exp(-theta))
    rows = zip(SIDES[0].logits.tolist(), SIDES[1].logits.tolist(), strict=True)
    return temperature**2 * sum(kl(softmax(t, temperature), softmax(s, temperature)) for s, t in rows) / 4


@pytest.mark.parametrize(("t_start", "t_end"), [(1.0, 20.0), (0.5, 3.0)])
def test_value(t_start, t_end):
    loss = CurriculumTemperature(None, t_start, t_end).double()
    assert loss(*SIDES, LABELS).item() == pytest.approx(slow(1.0, t_start, t_end), rel=1e-9)


@pytest.mark.parametrize(
    ("epoch", "factor"), [(0, -0.02447174185242318), (1, -0.09549150281252627), (4, -0.5), (9, -1.0), (300, -1.0)]
)
def test_theta_ascends_by_a_factor_that_grows_with_epochs(epoch, factor):
    loss = CurriculumTemperature(length=10).double()
    loss.advance(epoch, 0)
    loss(*SIDES, LABELS).backward()
    slope = (slow(1 + 1e-5) - slow(1 - 1e-5)) / 2e-5
    assert abs(slope) > 1e-4
    assert loss.theta.grad.item() == pytest.approx(factor * slope, rel=1e-5)


def test_theta_rests_before_the_first_epoch():
    loss = CurriculumTemperature().double()
    loss(*SIDES, LABELS).backward()
    assert loss.theta.grad.item() == 0


def test_student_gradient_is_that_of_the_loss_at_temperature():
    student = SIDES[0].logits.clone().requires_grad_()
    loss = CurriculumTemperature().double()
    loss.advance(5, 0)
    assert torch.autograd.gradcheck(lambda x: loss(Outputs(x), SIDES[1], LABELS), student)


@pytest.mark.parametrize("inner", [DKD(beta=2.0), LogitStandardization(SoftTargets())])
def test_other_losses_at_the_trained_temperature(inner):
    loss = CurriculumTemperature(inner).double()
    value = loss(*SIDES, LABELS)
    part = getattr(inner, "loss", inner)
    assert part.temperature == 4.0  # its own again
    part.temperature = 1 + 20 / (1 + math.exp(-1))
    assert value.item() == pytest.approx(inner(*SIDES, LABELS).item(), rel=1e-12)
    assert loss.needs == inner.needs


def test_the_loss_keeps_its_temperature_when_it_fails():
    inner = SoftTargets(3.0)
    with pytest.raises(InputError):
        CurriculumTemperature(inner)(SIDES[0], Outputs(torch.zeros(4, 3)), LABELS)
    assert inner.temperature == 3.0


def test_loss_without_temperature_raises_input_error():
    with pytest.raises(InputError, match="TTM has no temperature"):
        CurriculumTemperature(TTM())


def test_theta_is_trained_upwards():
    loss = CurriculumTemperature()
    loss.advance(20, 0)
    optimizer = torch.optim.SGD(loss.parameters(), lr=0.1)
    before = loss(*SIDES, LABELS).item()
    for _ in range(5):
        optimizer.zero_grad()
        loss(*SIDES, LABELS).backward()
        optimizer.step()
    assert loss(*SIDES, LABELS).item() > before
