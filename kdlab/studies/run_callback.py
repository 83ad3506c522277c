"""Callback that records a study's run: its progress, the accuracy of each epoch, its time."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from kdlab.files import write_json

STATUS = "status.json"


class Record(pl.Callback):
    """Writes ``status.json`` after every epoch and keeps each epoch's validation accuracy in the checkpoint.

    A run that is killed and resumed therefore knows its best epoch, and its time is that of the epochs that count: the
    epochs that a kill discarded are not in it.

    Args:
        folder: of the run.

    Attributes:
        accuracies: epoch (counted from 1) and validation accuracy in [0, 1].
        seconds: of training, validation included, up to the last epoch.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.accuracies: list[tuple[int, float]] = []
        self.seconds = 0.0
        self._since: float | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock and write the first status."""
        self._since = time.monotonic()
        self._write(trainer, trainer.current_epoch)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Record the accuracy of an epoch: the module has logged it, and the checkpoint is not written yet."""
        if trainer.sanity_checking or self._since is None:
            return
        for name in ("val/deployed_accuracy", "val/student_accuracy"):
            if name in trainer.callback_metrics:
                self.accuracies.append((trainer.current_epoch + 1, float(trainer.callback_metrics[name])))
                break

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the progress."""
        self._write(trainer, trainer.current_epoch + 1)

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        self._tick()
        return {"accuracies": [list(pair) for pair in self.accuracies], "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what a checkpoint kept."""
        self.accuracies = [(int(epoch), float(accuracy)) for epoch, accuracy in state_dict["accuracies"]]
        self.seconds = float(state_dict["seconds"])

    def best(self) -> tuple[int, float] | None:
        """Return the first epoch with the highest validation accuracy, and that accuracy, if any was validated."""
        return max(self.accuracies, key=lambda pair: (pair[1], -pair[0]), default=None)

    def _tick(self) -> None:
        if self._since is not None:
            now = time.monotonic()
            self.seconds += now - self._since
            self._since = now

    def _write(self, trainer: pl.Trainer, epoch: int) -> None:
        self._tick()
        if trainer.is_global_zero:
            status = {"state": "running", "epoch": epoch, "epochs": trainer.max_epochs, "seconds": self.seconds}
            write_json(self.folder / STATUS, status)
