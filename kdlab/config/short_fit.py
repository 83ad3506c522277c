"""A fit of a few steps that shows time, memory and loss."""

from __future__ import annotations

import contextlib
import itertools
import statistics
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from torch import Tensor

from kdlab.errors import InputError
from kdlab.export.timing import PeakMemory
from kdlab.outputs import Batch

WARM = 3
"""Steps at the start of a fit that are not timed."""


class Fit(NamedTuple):
    """What a short fit shows.

    Attributes:
        seconds: of a sample, all that surrounds a step included.
        memory: bytes at the peak: on a GPU those allocated, else those by which the process grew; ``None`` if unknown.
        loss: mean of the last quarter of the steps.
    """

    seconds: float
    memory: float | None
    loss: float


def short_fit(trainer: pl.Trainer, module: pl.LightningModule, data: Any, steps: int) -> Fit:
    """Train a few steps; ``data`` can be given to another Trainer afterwards.

    Raises:
        InputError: the training is over before.
    """
    device = trainer.strategy.root_device
    watch, memory = _Steps(device, steps), PeakMemory(device)
    trainer.callbacks.append(watch)  # type: ignore[attr-defined]
    try:
        with memory, contextlib.suppress(_Enough):
            trainer.fit(module, datamodule=data)
    finally:
        data.trainer = None
    return Fit(watch.seconds(), memory.bytes, watch.loss())


class _Enough(Exception):  # noqa: N818
    """Ends the Trainer's fit."""


class _Steps(pl.Callback):
    """Notes when each step begins, and its loss, and ends the fit after ``steps`` timed ones."""

    def __init__(self, device: torch.device, steps: int) -> None:
        self.device, self.steps = device, steps
        self.begins: list[float] = []
        self.losses: list[Tensor] = []
        self.samples = 0

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, number: int) -> None:
        self.samples = max(self.samples, len(Batch.of(batch).target))
        if self.device.type != "cpu" and len(self.begins) in (WARM, WARM + self.steps):
            torch.accelerator.synchronize(self.device)
        self.begins.append(time.perf_counter())
        if len(self.begins) > WARM + self.steps:
            raise _Enough

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, *_: Any) -> None:
        loss = outputs["loss"] if isinstance(outputs, Mapping) else outputs
        self.losses.append(loss.detach())

    def seconds(self) -> float:
        """Return the seconds of a sample: of the median step; on a GPU, where steps overlap, of the mean one."""
        timed = self.begins[WARM:]
        if len(timed) < 2:
            text = f"The training is over after {len(self.begins)} steps: give fewer --steps, or train longer."
            raise InputError(text)
        steps = [after - before for before, after in itertools.pairwise(timed)]
        step = statistics.median(steps) if self.device.type == "cpu" else statistics.mean(steps)
        return step / self.samples

    def loss(self) -> float:
        """Return the mean loss of the last quarter of the steps."""
        last = self.losses[-max(1, len(self.losses) // 4) :]
        return float(torch.stack([loss.float() for loss in last]).mean())
