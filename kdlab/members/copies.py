"""Untrained copies of learners: their moving average, or a snapshot of them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from kdlab.compat import lerp_
from kdlab.errors import InputError, check_word
from kdlab.members.batchnorm import batch_statistics
from kdlab.members.member import BATCHNORM, Learner, Seen, UntrainedMember
from kdlab.outputs.containers import Batch, Outputs
from kdlab.schedules import Progress


class Copy(UntrainedMember):
    """A copy of a learner's network that is never trained, but belongs into checkpoints: see :class:`Copies`.

    In training it normalizes with ``"batch"`` statistics, as the released mean teacher does, or with ``"frozen"`` ones,
    the running statistics, as always in evaluation.
    """

    learner: Learner

    def __init__(self, name: str, learner: Learner, batchnorm: str) -> None:
        self.__dict__["learner"] = learner
        super().__init__(name, copy.deepcopy(learner.network), batchnorm)
        self.inputs = learner.inputs

    @torch.no_grad()
    def observe(self, inputs: Any, batch: Batch) -> Outputs:
        """Run the copy once, without gradient."""
        self.network.eval()
        training = batch.progress is not None
        with batch_statistics(self.network) if training and self.batchnorm == "batch" else nullcontext():
            self.network.training = training and len(self.inputs) > 1  # branches split their inputs in train mode
            outputs = self.observer(inputs)
        self.network.training = False
        return outputs

    @torch.no_grad()
    def follow(self, decay: float = 0.0, buffers: bool = False) -> None:
        """Move each weight to ``decay * copy + (1 - decay) * network``, perhaps buffers too; copy what is left."""
        copied, learner = self.network, self.learner.network
        averaged: list[tuple[Tensor, Tensor]] = list(zip(copied.parameters(), learner.parameters(), strict=True))
        others: list[tuple[Tensor, Tensor]] = []
        for target, source in zip(copied.buffers(), learner.buffers(), strict=True):
            (averaged if buffers and target.is_floating_point() else others).append((target, source))
        if decay:
            lerp_([target for target, _ in averaged], [source for _, source in averaged], 1 - decay)
        else:
            others += averaged
        for target, source in others:
            target.copy_(source)


class EMA(Copy):
    r"""The exponential moving average of a learner's weights.

    .. math:: \theta' \leftarrow a_t \theta' + (1 - a_t) \theta, \qquad a_t = \min(1 - 1 / (t + 1), a)

    after the t-th optimizer step (t = 1, 2, ...), so that the average begins as a plain mean. BatchNorm's running
    statistics are averaged like the weights, or copied with ``buffers="copy"``.
    """

    def __init__(
        self, name: str, learner: Learner, decay: float = 0.999, buffers: str = "average", batchnorm: str = "batch"
    ) -> None:
        self.check(decay, buffers, batchnorm)
        super().__init__(name, learner, batchnorm)
        self.decay, self.average_buffers, self.updates = decay, buffers == "average", 0

    @staticmethod
    def check(decay: float, buffers: str, batchnorm: str) -> None:
        """Check the options."""
        if not 0 <= decay < 1:
            raise InputError(f"A moving average's decay is at least 0 and below 1, not {decay}.")
        check_word("buffers", buffers, ("average", "copy"))
        check_word("batchnorm", batchnorm, BATCHNORM)

    def on_step_end(self, progress: Progress) -> None:
        """Move the average."""
        self.updates += 1
        self.follow(min(1 - 1 / (self.updates + 1), self.decay), self.average_buffers)


class Snapshot(Copy):
    """A learner as it was at the last exchange, which comes ``every`` so many units; no output before the first one."""

    in_evaluation: ClassVar[bool] = False
    is_optional: ClassVar[bool] = True

    def __init__(self, name: str, learner: Learner, every: int, unit: str = "step", batchnorm: str = "frozen") -> None:
        self.check(every, unit, batchnorm)
        super().__init__(name, learner, batchnorm)
        self.every, self.unit, self.updates = every, unit, 0

    @staticmethod
    def check(every: int, unit: str, batchnorm: str) -> None:
        """Check the options."""
        if every < 1:
            raise InputError(f"Copies are exchanged every 1 or more {unit}s, not {every}.")
        check_word("unit", unit, ("step", "epoch"))
        check_word("batchnorm", batchnorm, BATCHNORM)

    def forward(self, batch: Batch, seen: Seen) -> dict[str, Outputs]:
        """Exchange, where it is time, and return the outputs of the last exchange's weights."""
        if batch.progress is not None and not self.is_dry_run:
            due = (batch.progress.epoch if self.unit == "epoch" else batch.progress.step) // self.every
            if due > self.updates:
                self.updates = due
                self.follow()
        return super().forward(batch, seen) if self.updates or self.is_dry_run else {}


class Copies(nn.Module):
    """The networks of copies, for checkpoints, in eval mode whatever ``train`` says, with their number of updates."""

    members: tuple[EMA | Snapshot, ...]

    def __init__(self, members: Sequence[EMA | Snapshot]) -> None:
        super().__init__()
        self.__dict__["members"] = tuple(members)
        self.networks = nn.ModuleDict({member.learner.name: member.network for member in members})

    def train(self, mode: bool = True) -> Copies:
        """Stay in eval mode."""
        return super().train(False)

    def add_module(self, name: str, module: nn.Module | None) -> None:
        """Stay in eval mode where the conversion of SyncBatchNorm puts new modules in."""
        super().add_module(name, module)
        self.eval()
