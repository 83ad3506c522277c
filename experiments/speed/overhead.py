"""Fixed cost: what a step of kdlab takes over a hand-written loop on networks of almost no cost."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from framework import fit
from hand import inferred, sgd, soft, trained
from inputs import CLASSES, WARM, Asked, Clock, Setting
from torch import Tensor, nn

from kdlab import Distiller, Knowledge
from kdlab.losses import SoftTargets

HAND, FULL, BARE = "hand loop", "kdlab: bar, CSV, metrics, checkpoint", "kdlab: without bar and logger"
LEAN = "Lightning alone: no bar, no logger, nothing logged"
SHORT, LEAN_SHORT = f"{FULL}; epochs of 20 steps", "Lightning alone; epochs of 20 steps"
IMAGE = (3, 4, 4)
EPOCH = 20


def trivial() -> nn.Module:
    """A linear layer on images of 3 x 4 x 4."""
    return nn.Sequential(nn.Flatten(), nn.Linear(48, CLASSES))


class Batches(list[tuple[Tensor, Tensor]]):
    """Batches in memory, as a loader of a user's own."""


def batches(setting: Setting, count: int) -> Batches:
    """``count`` times one of four random batches."""
    generator = torch.Generator().manual_seed(0)
    four = [
        (torch.randn(setting.batch, *IMAGE, generator=generator), torch.arange(setting.batch) % CLASSES)
        for _ in range(4)
    ]
    return Batches(batch for batch, _ in zip(cycle(four), range(count), strict=False))


class Begun(Batches):
    """Batches that note when each pass over them begins."""

    def __init__(self, batches: Batches, clock: Clock) -> None:
        super().__init__(batches)
        self.now, self.begins = clock.now, list[float]()

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self.begins.append(self.now())
        return super().__iter__()


class HandLoop:
    """KD by hand."""

    name = HAND

    def __init__(self, setting: Setting, steps: int) -> None:
        self.clock = Clock(setting)
        self.clock.steps = steps
        student, teacher = (trivial().to(setting.device) for _ in range(2))
        teacher.eval().requires_grad_(False)
        self.batches = [(x.to(setting.device), y.to(setting.device)) for x, y in batches(setting, WARM + steps)]
        self.step = trained(student, lambda x, y: soft(student(x), inferred(teacher, x), y))

    def turn(self) -> float:
        """Seconds a step, over the whole turn."""
        for images, labels in Asked(self.batches, self.clock):
            self.step(images, labels)
        return self.clock.mean()


class Lean(pl.LightningModule):
    """KD with as little around it as Lightning allows: what no code on Lightning can go below."""

    def __init__(self) -> None:
        super().__init__()
        self.student, self.teacher = trivial(), trivial().eval().requires_grad_(False)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The loss of the hand loop."""
        images, labels = batch
        return soft(self.student(images), inferred(self.teacher, images), labels)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Nothing."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The one of all contestants."""
        return sgd(self.student)


class Framework:
    """KD by kdlab with its default options, in a Trainer."""

    def __init__(self, name: str, setting: Setting, steps: int) -> None:
        self.name, self.setting = name, setting
        self.clock = Clock(setting)
        self.clock.steps = steps
        knowledge = {"kd": Knowledge(SoftTargets(4.0), weight=0.9)}
        self.module: pl.LightningModule = Distiller(trivial(), trivial(), knowledge, task_weight=0.1)
        if name in (LEAN, LEAN_SHORT):
            self.module = Lean()
        count = WARM + steps + 1
        loader: Any = Asked(batches(setting, count), self.clock)
        self.data = {"train_dataloaders": loader, "val_dataloaders": batches(setting, 1)}

    def turn(self) -> float:
        """Seconds a step, over the whole turn."""
        with tempfile.TemporaryDirectory() as runs:
            fit(
                self.module, self.data, len(self.data["train_dataloaders"]), Path(runs), self.setting, self.name != FULL
            )
        return self.clock.mean()


class ShortEpochs(Framework):
    """The same in epochs of few steps: what ends an epoch (validation, checkpoint, log) is part of the time."""

    def turn(self) -> float:
        """Seconds a step, from the second epoch to the last."""
        loader = Begun(batches(self.setting, EPOCH), self.clock)
        epochs = max(3, self.clock.steps // EPOCH)
        with tempfile.TemporaryDirectory() as runs:
            data = {**self.data, "train_dataloaders": loader}
            fit(self.module, data, EPOCH, Path(runs), self.setting, self.name != SHORT, epochs=epochs)
        first, *_, last = loader.begins[-epochs + 1 :]  # before the first epoch the dry run reads a batch
        return (last - first) / ((epochs - 2) * EPOCH)


def measure(setting: Setting, steps: int, others: list[Any]) -> dict[str, list[float]]:
    """Milliseconds a step of every turn, by contestant; the contestants alternate."""
    own = [Framework(name, setting, steps) for name in (FULL, BARE, LEAN)]
    short = [ShortEpochs(name, setting, steps) for name in (SHORT, LEAN_SHORT)]
    all_of_them: list[Any] = [HandLoop(setting, steps), *own, *short, *others]
    found: dict[str, list[float]] = {each.name: [] for each in all_of_them}
    for number in range(setting.rounds):
        for each in all_of_them[:: -1 if number % 2 else 1]:
            found[each.name].append(1e3 * each.turn())
    return found
