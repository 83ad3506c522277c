"""Standardized logits against plain loops."""

import statistics
from dataclasses import replace

import pytest
import torch
from torch import nn

from kdlab.errors import InputError
from kdlab.losses import DIST, MLKD, AttentionTransfer, LogitStandardization, RKDDistance, SoftTargets
from kdlab.outputs import Outputs
from tests.losses.slow import draw, kl, softmax

NO_TARGET = torch.zeros(1)


def z_score(row):
    return [(v - statistics.mean(row)) / (statistics.stdev(row) + 1e-7) for v in row]


def test_value():
    student, teacher = draw(4, 5, seed=1, scale=3), draw(4, 5, seed=2)
    rows = zip(student.tolist(), teacher.tolist(), strict=True)
    expected = sum(4 * kl(softmax(z_score(t), 2), softmax(z_score(s), 2)) for s, t in rows) / 4
    loss = LogitStandardization()(Outputs(student), Outputs(teacher), NO_TARGET)
    assert loss.item() == pytest.approx(expected, rel=1e-11)


def test_scale_and_shift_do_not_matter():
    student, teacher = draw(4, 5, seed=1), draw(4, 5, seed=2)
    losses = [
        LogitStandardization()(Outputs(s), Outputs(teacher), NO_TARGET).item() for s in (student, 9 * student - 4)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_views_are_standardized_and_the_rest_is_left_alone():
    class Seen(nn.Module):
        needs = ("logits", "embedding")
        views = ("strong",)

        def forward(self, student, teacher, target):
            self.student = student
            return student.logits.sum()

    loss = LogitStandardization(Seen())
    view = Outputs(draw(2, 3, seed=2))
    both = replace(Outputs(draw(2, 3, seed=1), embedding=draw(2, 4)), views={"strong": view})
    loss(both, both, NO_TARGET)
    assert loss.needs == ("logits", "embedding")
    assert loss.views == ("strong",)
    assert loss.loss.student.embedding is both.embedding
    assert loss.loss.student.views["strong"].logits[1].tolist() == pytest.approx(z_score(view.logits[1].tolist()))
    assert LogitStandardization(MLKD()).needs == ("logits", "views")


def test_a_constant_answer_has_a_finite_gradient():
    student = torch.zeros(2, 3, requires_grad=True)
    LogitStandardization()(Outputs(student), Outputs(torch.eye(2, 3)), NO_TARGET).backward()
    assert student.grad.isfinite().all()


def test_single_samples_only_around_a_loss_that_has_them():
    assert hasattr(LogitStandardization(SoftTargets()), "per_sample")
    assert not hasattr(LogitStandardization(DIST()), "per_sample")


@pytest.mark.parametrize("shape", [(2, 1), (0, 3)])
def test_logits_without_deviation_raise_input_error(shape):
    one = Outputs(torch.zeros(shape))
    with pytest.raises(InputError, match="cannot be standardized: at least 2 classes"):
        LogitStandardization()(one, one, NO_TARGET)
    two = Outputs(torch.tensor([[1.0, 4.0]]))
    assert LogitStandardization()(two, two, NO_TARGET).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("kind", [RKDDistance, AttentionTransfer])
def test_loss_without_logits_raises_input_error(kind):
    with pytest.raises(InputError, match=f"{kind.__name__} does not read logits"):
        LogitStandardization(kind())


def test_loss_without_needs_is_accepted():
    class Difference(nn.Module):
        def forward(self, student, teacher, target):
            return (student.logits - teacher.logits).square().sum()

    student, teacher = draw(2, 3, seed=1), draw(2, 3, seed=2)
    loss = LogitStandardization(Difference())
    assert loss.needs == ("logits",)
    pairs = [zip(z_score(s), z_score(t), strict=True) for s, t in zip(student.tolist(), teacher.tolist(), strict=True)]
    expected = sum((a - b) ** 2 for pair in pairs for a, b in pair)
    assert loss(Outputs(student), Outputs(teacher), NO_TARGET).item() == pytest.approx(expected, rel=1e-11)
