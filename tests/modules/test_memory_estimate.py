"""memory_estimate: an estimate that leaves nothing behind."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch

from kdlab.config.lightning_cli import QUIET, build
from kdlab.modules.base import DistillationModule
from kdlab.modules.memory_estimate import memory_of
from tests.config.test_lightning_cli import work  # noqa: F401


@pytest.mark.full
@pytest.mark.filterwarnings("ignore:The teacher is right on")
def test_nothing_of_an_estimate_stays(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.syspath_prepend(work)

    def estimated() -> weakref.ref[torch.nn.Module]:
        cli = build(["-c", "kd.yaml", *QUIET, "--trainer.max_epochs=1"], run=False, save_config=False)

        class Look(pl.Callback):
            def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
                assert isinstance(pl_module, DistillationModule)
                assert memory_of(pl_module)["gradients"] > 0

        cli.trainer.callbacks.append(Look())
        cli.trainer.fit(cli.model, datamodule=cli.datamodule)
        return weakref.ref(next(each for each in cli.model.student.parameters()))

    first, _ = estimated(), estimated()  # something of the last trainer's is kept until the next
    gc.collect()
    assert first() is None
