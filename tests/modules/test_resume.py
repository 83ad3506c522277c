"""A run that was stopped, or killed, goes on bit for bit."""

from __future__ import annotations

import multiprocessing
import os
import signal
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader

from kdlab import Distiller, Knowledge
from kdlab.errors import InputError
from kdlab.losses import Hint, SoftTargets
from kdlab.schedules import Linear, Progress, Schedule
from kdlab.teaching import Graph
from tests.modules.tiny import Logged, digits, distiller, network, pairs, same, sgd, trainer, weights
from tests.teaching.graphs import graph_module
from tests.tiers import tiered


class Noisy(nn.Module):
    """A loss that draws random numbers of every kind."""

    def forward(self, student: Any, teacher: Any, target: Tensor) -> Tensor:
        import random

        import numpy

        scale = torch.rand(()) + random.random() + float(numpy.random.rand())
        return scale * (student.logits - teacher.logits).square().mean()


def one_cycle(optimizer: torch.optim.Optimizer, **length: Any) -> OneCycleLR:
    return OneCycleLR(optimizer, max_lr=0.2, **length)


def build() -> Distiller:
    """Dropout, BatchNorm, a loss with parameters, a loss that draws, schedules of weight and learning rate."""
    torch.manual_seed(0)
    layers = [nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 10)]
    student = nn.Sequential(*layers)
    hint = Knowledge(Hint(), 0.5, student_layers=["3"], teacher_layers=["hidden.0"])
    soft = Knowledge(SoftTargets(2.0), 1.0, Linear(4))
    knowledge = {"soft": soft, "hint": hint, "noisy": Knowledge(Noisy(), 0.1)}
    return Distiller(student, network(1), knowledge, optimizer=sgd, lr_scheduler=one_cycle)


def everything(run: pl.Trainer, module: Distiller) -> dict[str, Any]:
    slots = run.optimizers[0].state_dict()
    schedule = run.lr_scheduler_configs[0].scheduler.state_dict()
    return {
        "weights": weights(module),
        "momentum": {str(key): each["momentum_buffer"].clone() for key, each in slots["state"].items()},
        "rates": [group["lr"] for group in slots["param_groups"]],
        "schedule": {key: value for key, value in schedule.items() if isinstance(value, (int, float))},
        "step": (run.global_step, run.current_epoch),
    }


def equal(first: dict[str, Any], second: dict[str, Any]) -> bool:
    tensors = all(same(first[part], second[part]) for part in ("weights", "momentum"))
    return tensors and all(first[part] == second[part] for part in ("rates", "schedule", "step"))


@pytest.mark.parametrize(("data", "validate"), tiered(product(["digits", "pairs"], [True, False]), [("pairs", True)]))
def test_four_epochs_are_two_and_two(data: str, validate: bool, tmp_path: Path) -> None:
    class StopAfterTwo(pl.Callback):
        def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            trainer.should_stop = trainer.current_epoch == 1

    def go(folder: str, seed: int, path: Path | None = None, stop: bool = False) -> dict[str, Any]:
        checkpoint = ModelCheckpoint(tmp_path / folder, save_last=True, save_top_k=0, every_n_epochs=1)
        callbacks = [checkpoint, StopAfterTwo()] if stop else [checkpoint]
        limit = 1.0 if validate else 0
        run = trainer(4, callbacks=callbacks, enable_checkpointing=True, limit_val_batches=limit)
        module = build()
        loader = digits(padding=1) if data == "digits" else pairs(shuffle=True)
        pl.seed_everything(seed, verbose=False)
        run.fit(module, loader, ckpt_path=path)
        return everything(run, module)

    whole = go("whole", 3)
    half = go("parts", 3, stop=True)
    assert half["step"] == (10, 2)
    resumed = go("parts", 99, tmp_path / "parts" / "last.ckpt")  # another seed: the checkpoint's counts
    assert equal(whole, resumed)
    assert not equal(go("other", 4), whole)


class Die(pl.Callback):
    """kill -9, after an optimiser step."""

    def __init__(self, step: int | None) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def a_run(folder: Path, die_at: int | None = None) -> dict[str, Any]:
    torch.set_num_threads(1)
    last = folder / "last.ckpt"
    checkpoint = ModelCheckpoint(folder, save_last=True, save_top_k=0, every_n_train_steps=3)
    run = trainer(3, callbacks=[checkpoint, Die(die_at)], enable_checkpointing=True, limit_val_batches=1.0)
    module = build()
    pl.seed_everything(5, verbose=False)
    run.fit(module, digits(padding=1), ckpt_path=last if last.exists() else None)
    return everything(run, module)


def test_a_run_killed_in_the_middle_of_an_epoch_goes_on(tmp_path: Path) -> None:
    process = multiprocessing.get_context("fork").Process(target=a_run, args=(tmp_path / "killed", 8))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL  # in epoch 1 after batch 3 of 5; the last checkpoint is from batch 1
    assert torch.load(tmp_path / "killed" / "last.ckpt", weights_only=True)["global_step"] == 6
    resumed, whole = a_run(tmp_path / "killed"), a_run(tmp_path / "whole")
    assert whole["step"] == (15, 3)
    assert equal(whole, resumed)


def test_a_one_cycle_rate_cannot_be_made_longer(tmp_path: Path) -> None:
    run = trainer(1)
    run.fit(build(), digits())
    run.save_checkpoint(tmp_path / "run.ckpt")
    with pytest.raises(InputError, match="planned for 5 steps, but this run takes 10"):
        trainer(2).fit(build(), digits(), ckpt_path=tmp_path / "run.ckpt")


class Rising(Schedule):
    """A user's schedule over the whole run."""

    def __call__(self, progress: Progress) -> float:
        assert progress.total_steps is not None
        return (progress.step + 1) / progress.total_steps


OVER_THE_RUN = {
    "gate": lambda: graph_module(Graph([{"student": "a", "teacher": "b", "gate": "linear"}])),
    "schedule": lambda: distiller(knowledge={"soft": Knowledge(SoftTargets(2.0), schedule=Rising())}),
    "rate": lambda: distiller(lr_scheduler=one_cycle),
}


@pytest.mark.parametrize("name", OVER_THE_RUN)
def test_what_lasts_the_whole_run_is_resumed_with_its_length(name: str, tmp_path: Path) -> None:
    run = trainer(2, max_steps=5)
    run.fit(OVER_THE_RUN[name](), digits())
    run.save_checkpoint(path := tmp_path / "run.ckpt")
    for changed in ({"max_steps": 7}, {"max_steps": 6, "limit_train_batches": 2, "max_epochs": 2}):
        options = {"epochs": 2} | changed
        again = trainer(**options)
        with pytest.raises(InputError, match=r"planned for 5 steps, but this run takes \d"):
            again.fit(OVER_THE_RUN[name](), digits(), ckpt_path=path)
        assert again.global_step == 0
    plain = distiller()
    trainer(2).fit(plain, digits(), ckpt_path=saved(tmp_path / "plain.ckpt"))


def saved(path: Path) -> Path:
    """A checkpoint after one epoch of a run in which nothing depends on its length."""
    run = trainer(1)
    run.fit(distiller(), digits())
    run.save_checkpoint(path)
    return path


def test_one_cycle_refuses_a_run_that_is_too_long() -> None:
    module = distiller(lr_scheduler=lambda optimizer: OneCycleLR(optimizer, 0.1, total_steps=7))
    run = trainer(2)
    with pytest.raises(InputError, match="ends after 7 steps, but this run takes 10"):
        run.fit(module, digits())
    assert run.global_step == 0


def test_an_epoch_of_another_size_is_refused_where_it_counts() -> None:
    class Growing(pl.LightningDataModule):
        def train_dataloader(self) -> DataLoader[Any]:
            return pairs(40 if self.trainer is None or self.trainer.current_epoch == 0 else 80)

        def val_dataloader(self) -> DataLoader[Any]:
            return pairs()

    with pytest.raises(InputError, match="Epoch 1 has 10 batches, but the run was planned for 5 an epoch"):
        trainer(2, reload_dataloaders_every_n_epochs=1).fit(distiller(lr_scheduler=one_cycle), Growing())
    trainer(2, reload_dataloaders_every_n_epochs=1).fit(distiller(), Growing())


def test_the_teacher_may_be_gone_or_another(tmp_path: Path) -> None:
    module = distiller()
    run = trainer(1)
    run.fit(module, digits())
    run.save_checkpoint(tmp_path / "run.ckpt")
    results = []
    for options in ({}, {"teacher": network(9)}, {"teacher": None, "knowledge": None}):
        again = distiller(**options)
        trainer(2).fit(again, digits(), ckpt_path=tmp_path / "run.ckpt")
        results.append(weights(again.student))
    assert not any(same(results[0], other) for other in results[1:])


def test_a_loader_that_shuffles_has_another_order_in_every_epoch() -> None:
    orders: list[list[float]] = []

    class Watch(pl.Callback):
        def on_train_epoch_start(self, *args: Any) -> None:
            orders.append([])

        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, number: int) -> None:
            orders[-1] += batch[0][:, 0].tolist()

    loader = DataLoader(pairs().dataset, 8, shuffle=True)
    trainer(3, callbacks=[Watch()]).fit(distiller(), loader)
    assert len({tuple(order) for order in orders}) == 3
    assert len({tuple(sorted(order)) for order in orders}) == 1


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
@pytest.mark.filterwarnings("ignore:The number of training batches")
def test_a_training_that_was_over_logs_its_last_row_when_resumed(tmp_path: Path) -> None:
    """Killed after its last checkpoint, and before the row was written of what a callback of the user logged."""

    class Epoch(pl.Callback):
        def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            pl_module.log("mine", float(trainer.current_epoch))

    options: dict[str, Any] = {"epochs": 2, "enable_checkpointing": True, "log_every_n_steps": 100}
    whole, resumed = Logged(), Logged()
    for logger, checkpoint in ((whole, None), (resumed, str(tmp_path / "last.ckpt"))):
        run = trainer(logger=logger, callbacks=[ModelCheckpoint(tmp_path, save_last=True), Epoch()], **options)
        run.fit(distiller(), digits(), ckpt_path=checkpoint, weights_only=False)
    logged = [row for row in whole.rows if "mine" in row[1]]
    assert [row["mine"] for _, row in logged] == [0, 1]
    assert resumed.rows == logged[-1:]
