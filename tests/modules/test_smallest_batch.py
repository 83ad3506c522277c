"""The last batch of an epoch, which may have one sample, is tried before the first step."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from kdlab import Knowledge
from kdlab.data.loader import loader
from kdlab.data.samplers import Shuffled
from kdlab.errors import InputError
from kdlab.losses import ITRD, MCL, CorrelationCongruence, ReviewKD, RKDDistance
from kdlab.modules.first_batch import _last_size
from kdlab.outputs import Outputs
from tests.modules.tiny import digits, distiller, pairs, trainer

CURES = r"leave it out \(data.drop_last=true, or drop_last=True in your DataLoader\), or take another batch size"


def normalized() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.Linear(16, 10))


class Spread(nn.Module):
    """The spread of the logits over the batch: 0 on one sample, with a gradient that is not a number."""

    needs = ("logits",)

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        return student.logits.var(0, correction=0).sqrt().sum()


@pytest.mark.parametrize("loss", [ITRD, MCL, Spread])
def test_a_loss_without_a_value_is_refused_before_training(loss: Any) -> None:
    module = distiller(knowledge={"mine": Knowledge(loss())})
    with pytest.raises(InputError, match=rf"has 1 sample a process, on which knowledge 'mine' \({loss.__name__}\)"):
        trainer().fit(module, pairs(17))
    assert module.global_step == 0
    trainer().fit(module, pairs(18))


def test_a_student_with_batchnorm_is_refused_before_training() -> None:
    module = distiller(student=normalized())
    with pytest.raises(
        InputError, match=rf"the network 'student' fails \(Expected more than 1 value.*{CURES}"
    ) as caught:
        trainer().fit(module, digits(train_size=161))
    assert caught.value.key == "data.batch_size"
    assert module.global_step == 0
    trainer().fit(module, digits(train_size=161, drop_last=True))
    assert module.global_step == 5


def test_batchnorm_of_a_loss_is_tried_in_training_mode() -> None:
    def net(width: int) -> nn.Module:
        parts = [nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, width, 8), nn.ReLU(), nn.Flatten(), nn.Linear(width, 10)]
        return nn.Sequential(*parts)

    knowledge = {"map": Knowledge(ReviewKD(), student_layers=["1"], teacher_layers=["1"])}
    module = distiller(student=net(4), teacher=net(6), knowledge=knowledge)
    with pytest.raises(InputError, match=r"has 1 sample a process, on which knowledge 'map'"):
        trainer().fit(module, pairs(17))


@pytest.mark.parametrize("loss", [RKDDistance, CorrelationCongruence])
def test_a_loss_over_pairs_rests_on_one_sample(loss: Any) -> None:
    module = distiller(knowledge={"mine": Knowledge(loss())})
    trainer().fit(module, pairs(17))
    assert module.global_step == 3
    assert all(each.isfinite().all() for each in module.parameters())


def test_batches_of_one_without_a_pair_are_said() -> None:
    module = distiller(knowledge={"mine": Knowledge(RKDDistance())})
    with pytest.warns(UserWarning, match=r"1 sample, on which knowledge 'mine' \(RKDDistance\) is 0"):
        trainer().fit(module, pairs(3, batch_size=1))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 1),
        ({"limit_train_batches": 2}, 8),
        ({"limit_train_batches": 0.7}, 8),
        ({"limit_train_batches": 3}, 1),
        ({"max_steps": 2}, 8),
        ({"max_steps": 2, "accumulate_grad_batches": 2}, 1),
    ],
)
def test_a_last_batch_that_never_comes_does_not_count(options: dict[str, Any], expected: int) -> None:
    usual = {"limit_train_batches": 1.0, "max_steps": -1, "accumulate_grad_batches": 1}
    run: Any = SimpleNamespace(**(usual | options))
    assert _last_size(pairs(17), run) == expected
    assert _last_size(loader(pairs(17).dataset, Shuffled(17, 8)), run) == expected


def test_sizes_are_those_of_one_process() -> None:
    run: Any = SimpleNamespace(limit_train_batches=1.0, max_steps=-1, accumulate_grad_batches=1)
    data = TensorDataset(torch.arange(19))
    assert _last_size(loader(data, Shuffled(19, 8, world_size=2)), run) == 1  # three samples left, one for each
    assert _last_size(loader(data, Shuffled(19, 8, world_size=2, drop_last=True)), run) == 4
    assert _last_size(DataLoader(data, 8, sampler=DistributedSampler(data, 2, 0)), run) == 2  # Lightning's: 10 of 20
    assert _last_size(DataLoader(data, 8, drop_last=True), run) == 8
    assert _last_size(DataLoader(data, batch_sampler=[[0, 1], [2]]), run) is None  # a user's own batches
    assert _last_size([*DataLoader(data, 8)], run) is None  # a list of batches is a loader too
