"""A run that is resumed logs what one never stopped logs, and its checkpoints lose no validation."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning import callbacks
from torch.optim.lr_scheduler import StepLR

from kdlab.config.step_checkpoint import ModelCheckpoint
from tests.modules.tiny import Logged, digits, distiller, trainer
from tests.tiers import tiered

pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists", "ignore:The dirpath has changed")


def fit(checkpoint: Any, resumed: Path | None = None, **options: Any) -> Logged:
    """Three epochs of five steps, logged every four."""
    pl.seed_everything(0, verbose=False)
    module, logged = distiller(lr_scheduler=partial(StepLR, step_size=1, gamma=0.5)), Logged()
    settings = {"epochs": 3, "limit_val_batches": 1.0, "log_every_n_steps": 4, "enable_checkpointing": True}
    run = trainer(**{**settings, **options}, logger=logged, callbacks=[checkpoint])
    run.fit(module, digits(), ckpt_path=resumed)
    return logged


def values(logged: Logged, since: int) -> set[tuple[int, str, float]]:
    return {(step, name, value) for step, row in logged.rows if step >= since for name, value in row.items()}


@pytest.mark.parametrize(
    "step", tiered([2, 4, 5], [4])
)  # inside the interval of a mean, before its row, before an epoch's row
@pytest.mark.parametrize("options", [{}, {"max_steps": 15}], ids=["epochs", "steps"])
def test_resumed_means_and_rows(tmp_path: Path, step: int, options: dict[str, int]) -> None:
    every = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=1)
    expected = values(fit(every, **options), step)
    again = ModelCheckpoint(tmp_path / "again", "{step}", save_top_k=-1, every_n_train_steps=1)
    found = values(fit(again, tmp_path / f"step={step}.ckpt", **options), 0)
    assert expected <= found
    assert {row for row in found if row[0] >= step} == expected
    assert not {at for at, name, _ in found if name == "loss/total" and at < step}  # written before the checkpoint


@pytest.mark.parametrize(("kind", "validated"), [(ModelCheckpoint, 1), (callbacks.ModelCheckpoint, 0)])
def test_the_last_step_of_an_epoch_is_saved_after_validation(tmp_path: Path, kind: Any, validated: int) -> None:
    seen: list[int] = []

    class Noting(kind):  # type: ignore[misc]
        def _save_checkpoint(self, trainer: pl.Trainer, path: str) -> None:
            seen.append(sum("val/loss" in row for _, row in trainer.logger.rows))  # type: ignore[union-attr]
            super()._save_checkpoint(trainer, path)

    fit(Noting(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=5), epochs=1)
    assert seen == [validated]


@pytest.mark.parametrize("options", [{"save_last": True}, {"filename": "last"}])
def test_the_last_checkpoint_is_the_end(tmp_path: Path, options: dict[str, Any]) -> None:
    fit(ModelCheckpoint(tmp_path, every_n_train_steps=4, enable_version_counter=False, **options))
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 15
