"""Members that run a network: what they run in training and in evaluation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdlab.members import Fast, Frozen, Learner
from kdlab.members.fast_inference import FastObserver
from kdlab.outputs import Batch
from kdlab.schedules import Progress


def batch(epoch: int | None, **views: Tensor) -> Batch:
    progress = None if epoch is None else Progress(epoch, 0)
    return Batch(torch.ones(3, 4), torch.zeros(3).long(), torch.arange(3), dict(views), progress=progress)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 5))


def test_values_are_checked_once_an_epoch_and_in_evaluation() -> None:
    member = Frozen(net(), fast=None)
    checked = []
    for epoch in (0, 0, 1, 1, None, None, 1, 1, 0, 0):
        member(batch(epoch), {})
        checked.append(member.observer.checks_values)
    assert checked == [True, False, True, False, True, True, True, False, True, False]


def test_layers_alone_are_run_in_training_alone() -> None:
    for only_layers in (False, True):
        member = Frozen(net(), fast=None)
        member.set_taps(["0"], only_layers=only_layers)
        for epoch in (0, None):
            member(batch(epoch), {})
            assert member.observer.only_layers == (only_layers and epoch is not None)


@pytest.mark.parametrize(
    ("options", "only_layers", "is_fast"),
    [
        ({}, False, True),
        ({}, True, True),
        ({"fast": None}, False, False),
        ({"fast": None}, True, False),
        ({"batchnorm": "batch"}, True, False),
        ({"fast": Fast(fold=False, channels_last=False)}, False, False),
        ({"fast": Fast(fold=False, channels_last=False)}, True, True),
    ],
)
def test_who_may_run_faster(options: dict[str, Any], only_layers: bool, is_fast: bool) -> None:
    torch.manual_seed(0)
    member = Frozen(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 2)), **options)
    member.set_taps(["0"], only_layers=only_layers)
    assert isinstance(member.observer, FastObserver) == is_fast


@pytest.mark.parametrize(
    ("inputs", "views", "rows"),
    [
        (("",), (), [[1.0] * 3]),
        (("other",), (), [[2.0] * 3]),
        (("",), ("other",), [[1.0] * 3, [2.0] * 3]),
        (("other",), ("third",), [[2.0] * 3, [3.0] * 3]),
    ],
)
def test_a_network_sees_its_inputs_and_views_in_training(
    inputs: tuple[str, ...], views: tuple[str, ...], rows: list[list[float]]
) -> None:
    """The first logit is the mean of the image."""
    network = nn.Linear(4, 2, bias=False)
    nn.init.constant_(network.weight, 0.25)
    member = Learner("net", network)
    member.inputs = inputs
    member.set_taps((), views)
    seen = member(batch(0, other=torch.full((3, 4), 2.0), third=torch.full((3, 4), 3.0)), {})["net"]
    values = [seen.logits[:, 0].tolist(), *(seen.views[view].logits[:, 0].tolist() for view in views)]
    assert values == rows
    assert member(batch(None), {})["net"].logits[:, 0].tolist() == [1.0] * 3


def test_a_network_is_found_by_any_name_of_its_outputs() -> None:
    member = Learner("net", net())
    member.views = ("other",)
    assert member.names == ("net", "net@other")
    assert member.networks_of("net@other") == member.networks_of("net") == ((member.network, ""),)
