"""A teacher, and a small student alone and distilled, on real digits without a download."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import pytorch_lightning as pl
import torch
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR

from kdlab.data import Digits, MixUp
from kdlab.knowledge import Knowledge
from kdlab.losses import SoftTargets
from kdlab.models import mlp, resnet14
from kdlab.modules import Distiller

TEACHER, ALONE, DISTILLED = "teacher", "student alone", "student distilled"
TEACHER_EPOCHS = 15

Progress = Callable[[str, int, int], pl.Callback]
"""Returns a callback that shows the training of a network by name, seed and number of epochs."""


class Setting(NamedTuple):
    """How a student is trained; chosen on held-out training images by ``experiments/demo/choose.py``.

    Attributes:
        labeled: images that a student gets; the teacher gets all.
        epochs: of training; fewer than the command line's default are for trying.
        rate: largest learning rate of Adam, best for the student ALONE, so that it is no weak baseline.
        temperature: of the soft targets.
        weight: of the soft targets; the labels have the rest.
        batch: images in a step.
        mixup: alpha of Mixup, which both students see alike; 0 for no Mixup.
    """

    labeled: int = 50
    epochs: int = 400
    rate: float = 0.01
    temperature: float = 8.0
    weight: float = 1.0
    batch: int = 50
    mixup: float = 1.0


SETTING = Setting()


class Run(NamedTuple):
    """One training.

    Attributes:
        name: of the network.
        seed: of the training.
        curve: epoch and metrics on the test set, at every validation.
        network: the trained network.
    """

    name: str
    seed: int
    curve: list[tuple[int, dict[str, float]]]
    network: nn.Module

    @property
    def parameters(self) -> int:
        """Return the number of parameters."""
        return sum(parameter.numel() for parameter in self.network.parameters())

    def last(self, key: str) -> float:
        """Return a metric after the last epoch; agreement and retention of the teacher with itself are 1."""
        return self.curve[-1][1].get(key, 1.0)


def train_all(seeds: int, epochs: int, progress: Progress) -> Iterator[Run]:
    """Train the teacher once, then with each seed 0, 1, ... the student alone and the student distilled."""
    setting = SETTING._replace(epochs=epochs)
    teacher = train_teacher(Digits, min(TEACHER_EPOCHS, epochs), progress)
    yield teacher
    for seed in range(seeds):
        for name in (ALONE, DISTILLED):
            yield train_student(name, seed, teacher.network, setting, Digits, progress)


def train_teacher(data: type[Digits], epochs: int, progress: Progress) -> Run:
    """Train the teacher on all training images."""
    pl.seed_everything(0, verbose=False)
    module = Distiller(student=resnet14(10, in_channels=1), lr_scheduler=partial(OneCycleLR, max_lr=0.1))
    return _train(TEACHER, 0, module, data(padding=1), epochs, progress)


def train_student(
    name: str, seed: int, teacher: nn.Module, setting: Setting, data: type[Digits], progress: Progress
) -> Run:
    """Train one student; the teacher of the one that is :data:`ALONE` serves evaluation only."""
    pl.seed_everything(seed, verbose=False)
    soft = {"soft": Knowledge(SoftTargets(setting.temperature), weight=setting.weight)}
    module = Distiller(
        student=mlp(64, [256], 10),
        teacher=teacher,
        knowledge=soft if name == DISTILLED else {},
        task_weight=1 - setting.weight if name == DISTILLED else 1.0,
        optimizer=torch.optim.Adam,
        lr_scheduler=partial(OneCycleLR, max_lr=setting.rate),
    )
    mixing = MixUp(setting.mixup) if setting.mixup else None
    images = data(batch_size=setting.batch, padding=1, train_size=setting.labeled, seed=seed, mixing=mixing)
    return _train(name, seed, module, images, setting.epochs, progress)


def _train(name: str, seed: int, module: Distiller, data: Digits, epochs: int, progress: Progress) -> Run:
    curve = _Curve()
    trainer = pl.Trainer(
        max_epochs=epochs,
        check_val_every_n_epoch=_interval(epochs),
        accelerator="cpu",
        devices=1,
        callbacks=[curve, progress(name, seed, epochs)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(module, data)
    if trainer.interrupted:  # Lightning catches Ctrl-C
        raise SystemExit(130)
    return Run(name, seed, curve.points, module.student)


def _interval(epochs: int) -> int:
    """Return the epochs between validations: about 1/25 of all, and so that the last epoch has one."""
    return next(interval for interval in range(max(1, epochs // 25), 0, -1) if epochs % interval == 0)


class _Curve(pl.Callback):
    def __init__(self) -> None:
        self.points: list[tuple[int, dict[str, float]]] = []

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        logged = trainer.callback_metrics.items()
        values = {key.removeprefix("val/"): float(value) for key, value in logged if key.startswith("val/")}
        self.points.append((trainer.current_epoch + 1, values))
