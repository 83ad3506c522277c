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
from tests.oracle_methods.method import Arrays, Method, count


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
    """A student and the loss that projects it to the teacher's width."""

    def __init__(self, h: dict[str, Any]) -> None:
        super().__init__()
        shapes = h["shapes"]
        classes, width = shapes["teacher_classifier_weight"]
        self.loss = losses.SimKD()
        self.student = projected(network(shapes["student_feature"][1], classes), "map", width=width, factor=h["factor"])

    def forward(self, arrays: Arrays) -> Tensor:
        """The loss as in a training step."""
        teacher = teacher_network(arrays)
        self.student.size = tuple(arrays["teacher_feature"].shape[2:])
        self.loss.setup(Context(self.student, (teacher,), ("projector",), ("map",)))
        seen = observe(self.student, arrays["student_feature"], ["projector"])
        value: Tensor = self.loss(seen, observe(teacher, arrays["teacher_feature"], ["map"]), torch.zeros(1))
        return value


def sem_ckd(arrays: Arrays) -> dict[str, str]:
    """The authors' names of the parts of each student layer and each teacher layer, and ours."""
    names, students, teachers = {}, count(arrays, "student_feature"), count(arrays, "teacher_feature")
    for theirs, ours, layers in (("query", "queries", students), ("key", "keys", teachers)):
        for i in range(layers):
            for linear, place in (("linear1", 0), ("linear2", 2)):
                for part in ("weight", "bias"):
                    names[f"self_{theirs}_weight{i}_{linear}_{part}"] = f"{ours}.{i}.{place}.{part}"
    for i in range(students):
        for j in range(teachers):
            for place in (0, 1, 3, 4, 6):
                for part in ("weight", "bias"):
                    names[f"self_regressor{i}{j}_regressor_{place}_{part}"] = f"projections.{i}.{j}.{place}.{part}"
    return names


def full_batch(loss: Any, arrays: Arrays) -> None:
    """Set SemCKD up for the batch that its perceptrons read."""
    size = arrays["self_query_weight0_linear1_weight"].shape[1]
    loss.setup(Context(nn.Identity(), (nn.Identity(),), batch_size=size))


def pairs(arrays: Arrays, name: str) -> list[list[Tensor]]:
    students, teachers = arrays["attention"].shape[1:]
    return [[arrays[f"{name}{i}{j}"] for j in range(teachers)] for i in range(students)]


METHODS: dict[str, Method] = {
    "CAT-KD": Method(
        lambda h: losses.CATKD(h["resolution"], h["normalise"]),
        compute=lambda loss, arrays: loss.compare(arrays["student_cam"], arrays["teacher_cam"]),
    ),
    "ICKD": Method(lambda h: losses.ICKD()),
    "PEFD": Method(
        lambda h: losses.PEFD(count(h["shapes"], "projector_") // 2),
        lambda arrays: {
            f"projector_{i}_{part}": f"projectors.{i}.{part}"
            for i in range(count(arrays, "projector_") // 2)
            for part in ("weight", "bias")
        },
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
        sem_ckd,
        setup=full_batch,
    ),
    "SemCKD-combination": Method(
        lambda h: losses.SemCKD(),
        compute=lambda loss, arrays: combined(pairs(arrays, "s"), pairs(arrays, "t"), arrays["attention"]),
    ),
    "SimKD": Method(
        SimKD,
        {
            f"projector_transfer_{place}_{part}": f"student.projector.{place}.{part}"
            for place in (0, 1, 3, 4, 6, 7)
            for part in (("weight",) if place % 3 == 0 else ("weight", "bias"))
        },
        compute=lambda loss, arrays: loss(arrays),
    ),
}
