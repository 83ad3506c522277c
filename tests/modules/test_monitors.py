"""Monitors of callbacks: those that nothing logs are refused, those of a user's own callback work."""

from __future__ import annotations

from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from kdlab import Distiller
from kdlab.errors import InputError


class Logging(pl.Callback):
    """A user's own callback, which logs a value."""

    def __init__(self, hook: str) -> None:
        self.hook = hook

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.hook == "validation":
            pl_module.log("mine", 1.0)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.hook == "training":
            pl_module.log("mine", 1.0)


def fit(*callbacks: pl.Callback, samples: int = 8, **options: Any) -> pl.Trainer:
    data = DataLoader(TensorDataset(torch.randn(samples, 3), torch.arange(samples) % 2), batch_size=4)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    trainer = pl.Trainer(callbacks=[*callbacks], enable_model_summary=False, **{"max_epochs": 1, **quiet, **options})
    trainer.fit(Distiller(nn.Linear(3, 2)), data, data)
    return trainer


pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
]


@pytest.mark.parametrize(
    "name", ["val/loss", "val/student_accuracy", "loss/total", "loss/task_weighted", "weight/task"]
)
def test_logged_values_can_be_watched(name: str) -> None:
    assert fit(EarlyStopping(name, check_on_train_epoch_end=True)).global_step == 2


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("student_accuracy", {}, "the nearest are 'val/student_accuracy'"),
        ("val/acc", {}, "watches 'val/acc', which is not logged"),
        ("val/acc", {"num_sanity_val_steps": 0}, "watches 'val/acc', which is not logged"),
        ("loss/tsak", {}, "the nearest are .*'loss/task'"),
        ("val/loss", {"limit_val_batches": 0}, "there is no validation"),
    ],
)
def test_others_are_refused_before_the_first_step(name: str, options: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        fit(EarlyStopping(name), **options)


def test_a_monitor_that_may_be_missing_is_left_alone() -> None:
    assert fit(EarlyStopping("nobody", strict=False)).global_step == 2


def test_a_users_callback_logs_what_it_watches() -> None:
    assert fit(Logging("validation"), EarlyStopping("mine")).global_step == 2
    with pytest.warns(UserWarning, match="A callback of yours may log it later"):
        assert fit(Logging("training"), EarlyStopping("mine", check_on_train_epoch_end=True)).global_step == 2


@pytest.mark.parametrize(
    ("batches", "options"),
    [
        (2, {"max_epochs": 2, "check_val_every_n_epoch": 2}),
        (2, {"max_epochs": 3, "check_val_every_n_epoch": 2}),
        (2, {"max_epochs": 1, "check_val_every_n_epoch": 2}),
        (3, {"max_epochs": -1, "max_steps": 6}),
        (3, {"max_epochs": -1, "max_steps": 5}),
        (3, {"max_epochs": 2, "max_steps": 2, "accumulate_grad_batches": 2}),
        (3, {"max_epochs": 2, "max_steps": 3, "accumulate_grad_batches": 2}),
        (3, {"max_epochs": 2, "val_check_interval": 2}),
        (4, {"max_epochs": 2, "val_check_interval": 2}),
        (3, {"max_epochs": 2, "val_check_interval": 2, "check_val_every_n_epoch": None}),
        (3, {"max_epochs": 1, "val_check_interval": 2, "check_val_every_n_epoch": None}),
        (2, {"max_epochs": 3, "check_val_every_n_epoch": 2, "limit_val_batches": 0}),
    ],
)
def test_an_end_without_validation_is_reported_at_the_start(
    batches: int, options: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    seen: list[int] = []
    note = pl.callbacks.LambdaCallback(on_validation_end=lambda trainer, _: seen.append(trainer.global_step))
    trainer = fit(note, samples=4 * batches, num_sanity_val_steps=0, **options)
    validated = trainer.global_step in seen or options.get("limit_val_batches") == 0  # the user left validation out
    assert ("No validation follows the last step" in caplog.text) != validated
