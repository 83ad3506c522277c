"""Setup of a config as ``kdlab fit`` does it, without a training step."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from pytorch_lightning.callbacks import LambdaCallback

from kdlab.config.lightning_cli import KdlabCLI
from kdlab.modules.teacher_choice import without_timing

SAMPLES = 10
"""Samples of one process in each of the two batches that are validated; a warning of a bad teacher takes 20."""


class _FirstStep(Exception):  # noqa: N818
    """Ends the Trainer's fit."""


def fit_to_first_step(cli: KdlabCLI, look: Callable[[], None] = lambda: None) -> None:
    """Run fit up to the first step: the dry run, every setup hook, and validation on a few samples; then ``look``.

    The config is built with :data:`~kdlab.config.lightning_cli.QUIET`.
    """

    def stop(*_: object) -> None:
        look()
        raise _FirstStep

    cli.trainer.callbacks.append(LambdaCallback(on_train_start=stop))  # type: ignore[attr-defined]
    if hasattr(cli.datamodule, "eval_batch_size"):
        few = SAMPLES * cli.trainer.world_size
        cli.datamodule.eval_batch_size = min(few, cli.datamodule.eval_batch_size)
    without_timing(cli.model)
    with contextlib.suppress(_FirstStep):
        cli.trainer.fit(cli.model, datamodule=cli.datamodule)
