"""Micro-batches and processes that count by the number of their labeled positions."""

from __future__ import annotations

import math
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from torch import Tensor

from kdlab.modules.run_length import accumulates
from kdlab.outputs import Batch

SCALE = 1024.0
"""Positions that a loss is scaled for, which keeps the scaled losses of fp16-mixed in range."""


def takes_several_batches(trainer: pl.Trainer) -> bool:
    """Return whether a step may take batches of several processes, or several of one."""
    return trainer.world_size > 1 or accumulates(trainer)


def zero_without_labels(loss: Tensor, target: Tensor, ignore: int | None) -> Tensor:
    """Return a task loss, or 0 where no label of the batch counts: torch's mean over none is nan."""
    if ignore is None or (loss.is_cpu and math.isfinite(loss.item())):  # a look at a GPU's would wait for it
        return loss
    return torch.where(target.ne(ignore).any(), loss, 0.0)


class PositionWeights(pl.Callback):
    r"""Make the gradient of a step that of the mean over all its labeled positions.

    Lightning averages over accumulated batches, and DDP over processes, whatever they hold. Where labels may be
    ignored a batch i with n_i labels therefore counts n_i times, and the gradient of a step is divided by their sum
    before it is clipped:

    .. math:: \nabla L = \frac{\sum_i n_i \nabla L_i}{\sum_i n_i}

    over all accumulated batches of all processes. Every term counts like this; logged values stay those of each batch.
    Without ignored labels, or under DOT, nothing is done. It is not registered where a step takes one batch.
    """

    def __init__(self) -> None:
        self._differ = False  # whether batches of a step may
        self._count: Tensor | None = None  # of the step so far
        self._batch: Tensor | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Find out whether batches of a step may differ in the number of their labels."""
        self._differ = pl_module.ignore is not None
        self._count = None

    def count(self, batch: Batch, ignore: int | None) -> None:
        """Count the labels of a batch, where batches of a step may differ in it."""
        self._batch = batch.target.ne(ignore).sum() if self._differ and ignore is not None else None
        if self._batch is not None:
            self._count = self._batch if self._count is None else self._count + self._batch

    def weighted(self, loss: Tensor) -> Tensor:
        """Return the loss whose gradient is computed: that of a batch times the number of its labels."""
        return loss if self._batch is None else loss * (self._batch / SCALE)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Divide the gradient by the number of labels."""
        if self._count is None:
            return
        count, self._count = self._count.double(), None
        if trainer.world_size > 1:
            dist.all_reduce(count)
        factor = trainer.accumulate_grad_batches * trainer.world_size * SCALE / max(float(count), 1.0)
        for parameter in pl_module.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(factor)
