"""UNIC's dropping of teachers."""

from __future__ import annotations

import pytest
import torch

from kdlab.errors import InputError
from kdlab.knowledge import Knowledge
from kdlab.losses import CosineSmoothL1, RKDDistance
from kdlab.losses.sample_weights import dropped_mean


def test_without_dropping_it_is_the_mean() -> None:
    values = torch.rand(3, 5)
    assert float(dropped_mean(list(values), 0.0)) == pytest.approx(float(values.mean()))


def test_with_certain_dropping_only_the_worst_teacher_counts() -> None:
    values = torch.tensor([[1.0, 5.0], [3.0, 2.0], [2.0, 4.0]])
    assert float(dropped_mean(list(values), 1.0)) == 4.0


def test_half_of_the_others_are_dropped() -> None:
    torch.manual_seed(0)
    worst, other = torch.full((20000,), 2.0), torch.full((20000,), 1.0)
    # n kept of the others: (2 N + n) / (N + n) with n about N / 2.
    assert float(dropped_mean([other, worst], 0.5)) == pytest.approx(2.5 / 1.5, abs=0.01)
    assert float(dropped_mean([other, worst], 0.2)) == pytest.approx(2.8 / 1.8, abs=0.01)


def test_gradient_reaches_what_is_kept_alone() -> None:
    values = [torch.tensor([1.0, 5.0], requires_grad=True), torch.tensor([3.0, 2.0], requires_grad=True)]
    dropped_mean(values, 1.0).backward()
    assert [value.grad.tolist() for value in values] == [[0.0, 0.5], [0.5, 0.0]]  # type: ignore[union-attr]


@pytest.mark.parametrize(("loss", "dropping"), [(CosineSmoothL1(), 1.5), (RKDDistance(), 0.5)])
def test_dropping_needs_a_chance_and_a_loss_of_each_sample(loss: torch.nn.Module, dropping: float) -> None:
    with pytest.raises(InputError, match="dropping is a chance from 0 to 1"):
        Knowledge(loss, dropping=dropping)
