"""What a run of a study leaves behind while it trains: where it is, its epochs' accuracies, its time."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from kdlab.studies.files import write_json

STATUS = "status.json"


class Record(pl.Callback):
    """Writes ``status.json`` after every epoch and keeps the validation accuracy of each in the checkpoint.

    So a run that is killed and goes on knows its best epoch, and its time is that of the epochs that count: what a kill
    threw away is not in it.

    Args:
        folder: the run's.

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
        """Start the clock and say that the run is on its way."""
        self._since = time.monotonic()
        self._write(trainer, trainer.current_epoch)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note the accuracy of an epoch: the module has logged it, and its checkpoint is not written yet."""
        if trainer.sanity_checking or self._since is None:
            return
        for name in ("val/deployed_accuracy", "val/student_accuracy"):
            if name in trainer.callback_metrics:
                self.accuracies.append((trainer.current_epoch + 1, float(trainer.callback_metrics[name])))
                break

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say how far the run is."""
        self._write(trainer, trainer.current_epoch + 1)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        self._tick()
        return {"accuracies": [list(each) for each in self.accuracies], "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what a checkpoint kept."""
        self.accuracies = [(int(epoch), float(accuracy)) for epoch, accuracy in state_dict["accuracies"]]
        self.seconds = float(state_dict["seconds"])

    def best(self) -> tuple[int, float] | None:
        """The first epoch with the highest validation accuracy, and that accuracy; nothing if none was validated."""
        return max(self.accuracies, key=lambda each: (each[1], -each[0]), default=None)

    def _tick(self) -> None:
        if self._since is not None:
            now = time.monotonic()
            self.seconds += now - self._since
            self._since = now

    def _write(self, trainer: pl.Trainer, epoch: int) -> None:
        self._tick()
        if trainer.is_global_zero:
            said = {"state": "running", "epoch": epoch, "epochs": trainer.max_epochs, "seconds": self.seconds}
            write_json(self.folder / STATUS, said)
