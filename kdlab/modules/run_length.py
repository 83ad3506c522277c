"""The number of optimizer steps of a run, and the one rule for all that depends on it."""

from __future__ import annotations

import math

import pytorch_lightning as pl
from pytorch_lightning.callbacks import GradientAccumulationScheduler
from torch.optim.lr_scheduler import OneCycleLR

from kdlab.errors import InputError

NO_LENGTH = "A one-cycle learning rate needs a run of known length: set trainer.max_epochs or trainer.max_steps."
SAME = "resume with the same trainer.max_epochs, batch size and number of devices"


def accumulation(trainer: pl.Trainer) -> GradientAccumulationScheduler | None:
    """Return the callback that sets the number of accumulated batches, if there is one."""
    callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return next((each for each in reversed(callbacks) if isinstance(each, GradientAccumulationScheduler)), None)


def accumulates(trainer: pl.Trainer) -> bool:
    """Return whether gradients are accumulated over several batches at any time."""
    scheduler = accumulation(trainer)
    return trainer.accumulate_grad_batches > 1 or (scheduler is not None and max(scheduler.scheduling.values()) > 1)


class RunLength:
    """The length of a run, as planned before its first step: a one-cycle rate and the gate "linear" end there.

    A run that stops earlier (max_time, EarlyStopping) does not reach that end; one that is resumed goes on with the
    same plan.

    Attributes:
        batches: batches an epoch, on this process; ``None`` if the loader has no length.
        epochs: epochs of the run, -1 for no end.
        steps: optimizer steps of the run; ``None`` if it has no end, or its loader no length.
        resumed: the steps for which the run that is resumed was planned.
        is_read: whether a weight or a schedule reads ``steps``.
        has_begun: whether training has begun, and no finder of Lightning trains.
    """

    def __init__(self) -> None:
        self.batches: int | None = None
        self.epochs: int | None = None
        self.steps: int | None = None
        self.resumed: int | None = None
        self.is_read = False
        self.has_begun = False

    def plan(self, trainer: pl.Trainer, batches: int | None) -> None:
        """Plan for ``batches`` of an epoch on this process, before limits.

        (Lightning's own estimate would build the loader before its position is restored: a resumed epoch would start
        over.)
        """
        self.has_begun = False
        limit = trainer.limit_train_batches
        if isinstance(limit, int):
            batches = limit if batches is None else min(batches, limit)
        elif batches is not None:
            batches = int(batches * limit)
        self.epochs = trainer.max_epochs  # before SWA adds one, in which no step is taken
        self._count(trainer, batches)

    def plan_again(self, trainer: pl.Trainer) -> None:
        """Plan for the loader that a finder of Lightning left."""
        batches = trainer.num_training_batches
        self._count(trainer, int(batches) if math.isfinite(batches) else None)

    def _count(self, trainer: pl.Trainer, batches: int | None) -> None:
        steps = math.inf
        if batches is not None and self.epochs is not None and self.epochs != -1:
            if scheduler := accumulation(trainer):
                epochs = map(scheduler.get_accumulate_grad_batches, range(self.epochs))
                steps = sum(math.ceil(batches / accumulated) for accumulated in epochs)
            else:
                steps = math.ceil(batches / trainer.accumulate_grad_batches) * self.epochs
        steps = steps if trainer.max_steps == -1 else min(steps, trainer.max_steps)
        self.batches, self.steps = batches, int(steps) if math.isfinite(steps) else None
        self.resumed = None

    def epochs_of_data(self, trainer: pl.Trainer) -> int:
        """Return how many epochs the run begins, at least 1, which it is where that is unknown."""
        epochs = math.inf if self.epochs is None or self.epochs == -1 else self.epochs
        if trainer.max_steps != -1 and self.batches:
            steps = math.ceil(self.batches / trainer.accumulate_grad_batches)
            epochs = min(epochs, math.ceil(trainer.max_steps / steps))
        return max(int(epochs), 1) if math.isfinite(epochs) else 1

    def counts(self, trainer: pl.Trainer) -> bool:
        """Return whether anything depends on the length."""
        return self.is_read or any(isinstance(each.scheduler, OneCycleLR) for each in trainer.lr_scheduler_configs)

    def check(self, trainer: pl.Trainer) -> None:
        """Check that what depends on the length ends where it was planned to end, also in a run that is resumed.

        Raises:
            InputError: it ends elsewhere.
        """
        if not self.counts(trainer):
            return
        cycles = [each.scheduler for each in trainer.lr_scheduler_configs if isinstance(each.scheduler, OneCycleLR)]
        what = "The one-cycle learning rate" if cycles else "A weight that changes over the whole run"
        if self.resumed is not None and self.resumed != self.steps:
            raise InputError(
                f"{what} was planned for {self.resumed} steps, but this run takes "
                f"{'an unknown number' if self.steps is None else self.steps}: {SAME}.",
                key="trainer.max_epochs",
            )
        short = [cycle.total_steps for cycle in cycles if self.steps is not None and cycle.total_steps < self.steps]
        if short:
            raise InputError(f"{what} ends after {short[0]} steps, but this run takes {self.steps}: {SAME}.")

    def unvalidated_end(self, trainer: pl.Trainer) -> str | None:
        """Return why no validation follows the last step, as the end of a sentence; ``None`` if one does, or may.

        (Lightning validates after the epochs, and within them after the batches, that it is told to.)
        """
        every, whole, within = trainer.check_val_every_n_epoch, self.batches, trainer.val_check_batch
        if not trainer.enable_validation or not whole or not self.steps or within is None:
            return None
        batches = whole
        if trainer.max_steps == -1:
            epochs = self.epochs or 0
        elif accumulation(trainer) is None:
            epochs, rest = divmod(self.steps, math.ceil(whole / trainer.accumulate_grad_batches))
            if rest:
                epochs, batches = epochs + 1, rest * trainer.accumulate_grad_batches
        else:  # the epoch of the last step changes with the number of accumulated batches
            return None
        if every is not None and epochs % every:
            return f"trainer.check_val_every_n_epoch is {every} and the run ends in epoch {epochs}"
        if math.isinf(within):
            ends = batches == whole
        else:
            ends = (batches if every is not None else (epochs - 1) * whole + batches) % within == 0
        return (
            None if ends else f"validation comes every {within} batches and the run ends {batches} into epoch {epochs}"
        )

    def check_epoch(self, trainer: pl.Trainer) -> None:
        """Check that an epoch has the planned number of batches.

        Raises:
            InputError: it has not: the data has another size or batch size than before the first step.
        """
        batches = trainer.num_training_batches
        planned = math.inf if self.batches is None else self.batches
        ended = self.steps is not None and trainer.global_step >= self.steps  # as in SWA's last epoch
        if self.has_begun and batches != planned and not ended and self.counts(trainer):
            raise InputError(
                f"Epoch {trainer.current_epoch} has {batches} batches, but the run was planned for {planned} an "
                "epoch, which a one-cycle learning rate or a weight over the run depends on: keep the size of the data "
                "and the batch size."
            )
