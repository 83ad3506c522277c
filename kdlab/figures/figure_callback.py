"""Figures of student and teacher in TensorBoard and Weights & Biases."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.loggers import TensorBoardLogger, WandbLogger
from pytorch_lightning.utilities import rank_zero_warn

from kdlab.figures.evidence import Evidence
from kdlab.modules.base import DistillationModule


class LogFigures(pl.Callback):
    """Logs the figures of ``kdlab plot`` after validation and test, to TensorBoard and Weights & Biases.

    In YAML ``trainer: {callbacks: [kdlab.figures.LogFigures]}``. The networks run once more on each batch. Several
    processes draw the samples of the first.

    Args:
        every_n_epochs: validations of other epochs, and the sanity check, are left out.
    """

    def __init__(self, every_n_epochs: int = 1) -> None:
        self.every_n_epochs = every_n_epochs
        self._evidence = Evidence()

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Warn where no logger takes figures."""
        if not any(isinstance(logger, TensorBoardLogger | WandbLogger) for logger in trainer.loggers):
            rank_zero_warn(
                "LogFigures draws nothing: neither TensorBoard nor Weights & Biases is a logger of this run."
            )

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start anew."""
        self._evidence = Evidence()

    on_test_start = on_validation_start

    def on_validation_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, *_: Any) -> None:
        """Collect the outputs on a batch."""
        due = not trainer.sanity_checking and (trainer.current_epoch + 1) % self.every_n_epochs == 0
        if trainer.is_global_zero and (due or trainer.testing) and isinstance(pl_module, DistillationModule):
            self._evidence.add(pl_module, batch)

    on_test_batch_end = on_validation_batch_end  # type: ignore[assignment]  # further arguments as they come

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw and log."""
        stage = "test" if trainer.testing else "val"
        loggers = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger | WandbLogger)]
        if not loggers or not trainer.is_global_zero:
            return
        for plot in self._evidence.plots(getattr(getattr(trainer, "datamodule", None), "classes", None)):
            for logger in loggers:
                if isinstance(logger, TensorBoardLogger):
                    logger.experiment.add_figure(f"{stage}/{plot.name}", plot.figure, trainer.global_step)
                else:
                    logger.log_image(f"{stage}/{plot.name}", [plot.figure])
        self._evidence = Evidence()

    on_test_end = on_validation_end
