"""ModelCheckpoint that loses neither a validation nor the end of a training."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning import callbacks


class ModelCheckpoint(callbacks.ModelCheckpoint):
    """Lightning's, but what is due after the last batch of an epoch is saved when the epoch has ended.

    Lightning saves it before the epoch's validation, which a run resumed from there never does: its values are missing,
    and so is what members and callbacks do after it. And ``last.ckpt`` is always the end of the training; Lightning's
    is that of the last step that ``every_n_train_steps`` divides, unless the run was resumed after it. The name stays,
    since it is that of the state in checkpoints.
    """

    _is_late = False

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        """Save if it is due within an epoch."""
        if not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            super().on_train_batch_end(trainer, *args, **kwargs)
        elif self._every_n_train_steps >= 1:
            self._is_late = trainer.global_step % self._every_n_train_steps == 0

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save if it was due after the last batch, or is at the end of an epoch."""
        if self._is_late and not self._should_skip_saving_checkpoint(trainer):
            values = self._monitor_candidates(trainer)
            self._save_topk_checkpoint(trainer, values)
            self._save_last_checkpoint(trainer, values)
        self._is_late = False
        super().on_train_epoch_end(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the end of the training."""
        if self._last_global_step_saved != trainer.global_step and not self._should_skip_saving_checkpoint(trainer):
            if self.filename == "last":
                self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))
            if self.save_last:
                self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))
        super().on_train_end(trainer, pl_module)
