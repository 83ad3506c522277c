"""The methods of the oracle file that project the student into the teacher."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

from kdlab import losses
from kdlab.losses.context import Context
from kdlab.losses.feature.sem_ckd import combined
from kdlab.models import projected
from kdlab.outputs import observe
from tests.oracle_methods.method import Arrays, Method


def network(channels: int, classes: int) -> nn.Module:
    """The tail of a network: a map, its mean, a classifier."""
    parts: dict[str, nn.Module] = {"map": nn.Identity(), "pool": nn.AdaptiveAvgPool2d(1), "flat": nn.Flatten()}
    return nn.Sequential(OrderedDict(parts, fc=nn.Linear(channels, classes)))


def teacher_network(arrays: Arrays) -> nn.Module:
    """A teacher with the classifier of ``arrays``."""
    weight, bias = arrays["teacher_classifier_weight"], arrays["teacher_classifier_bias"]
    teacher = network(weight.shape[1], weight.shape[0]).to(weight.dtype)
    teacher.load_state_dict({"fc.weight": weight.detach(), "fc.bias": bias.detach()})
    return teacher


def with_teacher(loss: Any, arrays: Arrays) -> None:
    """Set a loss up that reads the teacher's classifier alone."""
    loss.setup(Context(nn.Identity(), (teacher_network(arrays),)))


class SimKD(nn.Module):
    """A student of 6 channels for a teacher of 8, and the loss that trains it."""

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.loss = losses.SimKD()
        self.student = projected(network(6, 10), "map", width=8, factor=factor)

    def forward(self, arrays: Arrays) -> Tensor:
        """The loss as in a training step."""
        teacher = teacher_network(arrays)
        self.student.size = tuple(arrays["teacher_feature"].shape[2:])
        self.loss.setup(Context(self.student, (teacher,), ("projector",), ("map",)))
        seen = observe(self.student, arrays["student_feature"], ["projector"])
        value: Tensor = self.loss(seen, observe(teacher, arrays["teacher_feature"], ["map"]), torch.zeros(1))
        return value


def sem_ckd() -> dict[str, str]:
    """The authors' names of two student and two teacher layers, and ours."""
    names = {}
    for i in range(2):
        for theirs, ours in (("key", "keys"), ("query", "queries")):
            for linear, place in (("linear1", 0), ("linear2", 2)):
                for part in ("weight", "bias"):
                    names[f"self_{theirs}_weight{i}_{linear}_{part}"] = f"{ours}.{i}.{place}.{part}"
        for j in range(2):
            for place, parts in ((0, ("weight",)), (1, ("weight", "bias")), (3, ("weight",)), (4, ("weight", "bias"))):
                for part in parts:
                    names[f"self_regressor{i}{j}_regressor_{place}_{part}"] = f"projections.{i}.{j}.{place}.{part}"
            names[f"self_regressor{i}{j}_regressor_6_weight"] = f"projections.{i}.{j}.6.weight"
    return names


def pairs(arrays: Arrays, name: str) -> list[list[Tensor]]:
    return [[arrays[f"{name}{i}{j}"] for j in range(2)] for i in range(2)]


METHODS: dict[str, Method] = {
    "CAT-KD": Method(
        lambda h: losses.CATKD(h["resolution"], h["normalise"]),
        compute=lambda loss, arrays: loss.compare(arrays["student_cam"], arrays["teacher_cam"]),
    ),
    "ICKD": Method(lambda h: losses.ICKD()),
    "PEFD": Method(
        lambda h: losses.PEFD(),
        {f"projector_{i}_{part}": f"projectors.{i}.{part}" for i in range(3) for part in ("weight", "bias")},
    ),
    "SRRL": Method(
        lambda h: losses.SRRL(beta=h["weight"]),
        {
            "connector_Connectors_0_weight": "connector.conv.weight",
            "connector_Connectors_1_weight": "connector.norm.weight",
            "connector_Connectors_1_bias": "connector.norm.bias",
        },
        setup=with_teacher,
    ),
    "SemCKD": Method(
        lambda h: losses.SemCKD(h["factor"]),
        sem_ckd(),
        setup=lambda loss, arrays: loss.setup(Context(nn.Identity(), (nn.Identity(),), batch_size=8)),
    ),
    "SemCKD-combination": Method(
        lambda h: losses.SemCKD(),
        compute=lambda loss, arrays: combined(pairs(arrays, "s"), pairs(arrays, "t"), arrays["attention"]),
    ),
    "SimKD": Method(
        lambda h: SimKD(h["factor"]),
        {
            f"projector_transfer_{place}_{part}": f"student.projector.{place}.{part}"
            for place in (0, 1, 3, 4, 6, 7)
            for part in (("weight",) if place % 3 == 0 else ("weight", "bias"))
        },
        compute=lambda loss, arrays: loss(arrays),
    ),
}
