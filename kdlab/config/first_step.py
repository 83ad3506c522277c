"""Setup of a config as ``kdlab fit`` does it, without a training step."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytorch_lightning as pl

from kdlab.config.lightning_cli import KdlabCLI

SAMPLES = 10
"""Samples of one process in each of the two batches that are validated; a warning of a bad teacher takes 20."""


class _FirstStep(Exception):  # noqa: N818
    """Ends the Trainer's fit."""


class _Stop(pl.Callback):
    def __init__(self, look: Callable[[], None] | None) -> None:
        self.look = look

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.look is not None:
            self.look()
        raise _FirstStep


def fit_to_first_step(cli: KdlabCLI, look: Callable[[], None] | None = None) -> None:
    """Run fit up to the first step: the dry run, every setup hook, and validation on a few samples.

    Args:
        cli: of a config built with :data:`~kdlab.config.lightning_cli.QUIET`.
        look: called when everything is set up.
    """
    cli.trainer.callbacks.append(_Stop(look))  # type: ignore[attr-defined]
    if hasattr(cli.datamodule, "eval_batch_size"):
        few = SAMPLES * cli.trainer.world_size
        cli.datamodule.eval_batch_size = min(few, cli.datamodule.eval_batch_size)
    with contextlib.suppress(_FirstStep):
        cli.trainer.fit(cli.model, datamodule=cli.datamodule)
