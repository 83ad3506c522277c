"""Progress bar with the accuracies of student and teacher, or of the deployed network of a co-training."""

from __future__ import annotations

import time
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import RichProgressBar

PERIOD = 0.1
"""Seconds between two updates of the bar in an epoch; Lightning updates it at every step."""


class StudentBar(RichProgressBar):
    """Rich's bar with the accuracies of the last validation in percent after the loss."""

    _drawn = 0.0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Draw the bar at most once a period, and at the end of an epoch."""
        now = time.monotonic()
        if now - self._drawn >= PERIOD or batch_idx + 1 >= self.total_train_batches:
            self._drawn = now
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        """Return the bar's numbers, accuracies in percent and without the run's version."""
        shown = super().get_metrics(trainer, pl_module)
        shown.pop("v_num", None)
        for name in ("student", "teacher", "deployed"):
            if isinstance(value := shown.pop(f"val/{name}_accuracy", None), float):
                shown[name] = f"{value:.2%}"
        return dict(shown)
