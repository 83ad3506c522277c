"""The methods of the comparison: constants as published where they are, one optimiser for all, nothing tuned."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Bench, sgd
from torch import nn

from kdlab import CoTrainer, Distiller, Knowledge
from kdlab.data import CutMix, MixUp
from kdlab.losses import Hint, LabelSmoothing, SoftLabels, SoftTargets, VirtualTeacher
from kdlab.models import Branched, WithExits
from kdlab.modules import DistillationModule
from kdlab.schedules import ExponentialRamp, Linear
from kdlab.teaching import (
    Alone,
    Classmate,
    Consensus,
    DeepestExit,
    Gated,
    MinLogit,
    MovingAverage,
    Peers,
    PreviousEpoch,
)


@dataclass(frozen=True)
class Method:
    """How a method is trained.

    Attributes:
        build: the module, from the bench, the number of epochs and the state of the seed's plain network.
        setting: its constants, for the table.
        epochs: how many times the bench's epochs.
        options: of the data.
        teacher: whether it learns from the plain network of the same seed, whose cost then counts too.
        reports: learners that are reported beside the deployed one.
        cost: of its training in operations (forward and backward, counted on the digits), relative to plain; with that
            of its teacher.
    """

    build: Callable[[Bench, int, dict[str, Any]], DistillationModule]
    setting: str
    epochs: int = 1
    options: Callable[[], dict[str, Any]] = dict
    teacher: bool = False
    reports: tuple[str, ...] = ()
    cost: float = 1.0


def recipe(bench: Bench) -> dict[str, Any]:
    """The optimiser and the one-cycle schedule of a bench."""
    schedule = functools.partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=bench.rate)
    optimizer = functools.partial(sgd, rate=bench.rate)
    return {"optimizer": optimizer, "lr_scheduler": schedule, "channels_last": True}


def alone(teaching: Any, bench: Bench, knowledge: dict[str, Knowledge] | None = None, **options: Any) -> CoTrainer:
    """One network and its teaching."""
    return CoTrainer({"net": bench.network()}, knowledge, teaching, **recipe(bench), **options)


def soft(temperature: float, weight: float = 1.0, schedule: Any = None) -> dict[str, Knowledge]:
    """Soft targets."""
    return {"soft": Knowledge(SoftTargets(temperature), weight, schedule)}


def plain(bench: Bench, epochs: int, state: dict[str, Any]) -> CoTrainer:
    """Labels alone."""
    return alone(Alone(), bench)


def ramp(epochs: int) -> ExponentialRamp:
    """The ramp-up over the first 80 of 300 epochs, in proportion."""
    return ExponentialRamp(length=max(1, round(epochs * 80 / 300)))


def taught(bench: Bench, state: dict[str, Any], knowledge: dict[str, Knowledge], **options: Any) -> Distiller:
    """A new network that learns from the plain one."""
    student, teacher = bench.network(), bench.network()
    teacher.load_state_dict(state)
    return Distiller(student, teacher, knowledge, **recipe(bench), **options)


def peers(bench: Bench, teaching: Any, knowledge: dict[str, Knowledge], **options: Any) -> CoTrainer:
    """Two networks that start apart."""
    return CoTrainer({"a": bench.network(), "b": bench.network()}, knowledge, teaching, **recipe(bench), **options)


def exits(bench: Bench) -> nn.Module:
    """The network with an exit after each stage but the last."""
    return WithExits(bench.network(), ["layer1", "layer2"], "layer3", image=bench.image)


METHODS: dict[str, Method] = {
    "plain": Method(plain, "cross-entropy"),
    "plain, twice as long": Method(plain, "cross-entropy, twice the epochs", epochs=2, cost=2.0),
    "label smoothing": Method(
        lambda b, e, s: alone(Alone(), b, {"smooth": Knowledge(LabelSmoothing(0.1))}, task_weight=0.0), "eps 0.1"
    ),
    "mixup": Method(plain, "alpha 1, a share a sample", options=lambda: {"mixing": MixUp(1.0)}),
    "CutMix": Method(plain, "alpha 1, every batch", options=lambda: {"mixing": CutMix(1.0)}),
    "DML": Method(
        lambda b, e, s: peers(b, Peers(), soft(1.0)), "2 peers, T 1, deploys the first", reports=("b",), cost=2.0
    ),
    "KDCL (mean)": Method(
        lambda b, e, s: peers(b, Consensus(own_views=True), soft(4.0, 0.5), task_weight=0.5),
        "2 peers on own views, T 4, 0.5 and 0.5, deploys the first",
        reports=("b",),
        cost=2.0,
    ),
    "KDCL (MinLogit)": Method(
        lambda b, e, s: peers(b, Consensus(MinLogit(), own_views=True), soft(4.0, 0.5), task_weight=0.5),
        "as above, MinLogit",
        reports=("b",),
        cost=2.0,
    ),
    "ONE": Method(
        lambda b, e, s: CoTrainer(
            {"net": Branched(b.network(), "layer3", 3)}, soft(3.0, 1.0, ramp(e)), Gated("layer2"), **recipe(b)
        ),
        "3 branches from layer3, T 3, ramp-up, deploys the first branch",
        reports=("ensemble",),
        cost=1.61,
    ),
    "mean teacher": Method(
        lambda b, e, s: alone(MovingAverage(0.99), b, soft(1.0, 1.0, ramp(e)), deploy="average_net"),
        "decay 0.99, KL at T 1, ramp-up, deploys the average",
        reports=("net",),
        cost=1.34,
    ),
    "BYOT": Method(
        lambda b, e, s: CoTrainer(
            {"net": exits(b)},
            {
                "soft": Knowledge(SoftTargets(3.0), 0.1),
                "hint": Knowledge(Hint(None), 0.05, student_layers=["feature"]),
            },
            DeepestExit(exit_labels=0.9),
            **recipe(b),
        ),
        "exits after layer1 and layer2, labels 0.9, T 3 with 0.1, features 0.05",
        reports=("net_exit2",),
        cost=1.07,
    ),
    "CS-KD": Method(lambda b, e, s: alone(Classmate(), b, soft(4.0)), "T 4, weight 1", cost=2.0),
    "PS-KD": Method(
        lambda b, e, s: alone(
            PreviousEpoch(),
            b,
            {"past": Knowledge(SoftLabels(), 1.0, Linear(e, end=0.8, offset=1))},
            task_schedule=Linear(e, start=1.0, end=0.2, offset=1),
        ),
        "alpha 0.8",
    ),
    "Born-Again": Method(
        lambda b, e, s: taught(b, s, {"past": Knowledge(SoftLabels())}),
        "one generation after plain, labels and past 1 and 1",
        teacher=True,
        cost=2.34,
    ),
    "Tf-KD (self)": Method(
        lambda b, e, s: taught(b, s, soft(6.0, 0.95), task_weight=0.05),
        "plain as teacher, T 6, 0.95 and 0.05",
        teacher=True,
        cost=2.34,
    ),
    "Tf-KD (virtual teacher)": Method(
        lambda b, e, s: alone(Alone(), b, {"virtual": Knowledge(VirtualTeacher(), 0.1 * b.classes)}, task_weight=0.9),
        "as released: 0.99, T 20, weight 0.1 K, labels 0.9",
    ),
}
