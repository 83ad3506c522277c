"""Co-training in two processes (gloo, CPU) is that of one on the same global batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint

from kdlab import CoTrainer, Knowledge
from kdlab.losses import Hint, SoftLabels, SoftTargets
from kdlab.schedules import Linear
from kdlab.teaching import (
    Classmate,
    Consensus,
    General,
    LastMiniBatch,
    MovingAverage,
    Peers,
    PreviousEpoch,
    Teaching,
    TwoViews,
)
from tests.modules.test_ddp import train
from tests.modules.tiny import digits, network, sgd
from tests.tiers import tiered

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")


def soft() -> dict[str, Knowledge]:
    return {"soft": Knowledge(SoftTargets(2.0))}


def dml(update: Any) -> CoTrainer:
    nets = {"a": network(0), "b": network(1, (24,))}
    hint = Knowledge(Hint("1x1"), 0.5, student_layers=["hidden.0"])
    return CoTrainer(nets, {**soft(), "hint": hint}, Peers(update), optimizer=sgd)


def alone(teaching: Teaching) -> CoTrainer:
    return CoTrainer({"net": network()}, soft(), teaching, optimizer=sgd)


def kdcl() -> CoTrainer:
    nets = {"a": network(0), "b": network(1, (24,))}
    return CoTrainer(nets, soft(), Consensus(General()), optimizer=sgd)


def ps_kd() -> CoTrainer:
    ramp, task = Linear(2, end=0.8, offset=1), Linear(2, start=1.0, end=0.2, offset=1)
    past = {"past": Knowledge(SoftLabels(), 1.0, ramp)}
    return CoTrainer({"net": network()}, past, PreviousEpoch(), task_schedule=task, optimizer=sgd)


METHODS = {
    "dml": lambda: dml("simultaneous"),
    "dml, one after another": lambda: dml("sequential"),
    "ps-kd": ps_kd,
    "ema": lambda: alone(MovingAverage(0.9)),
    "ema, two views": lambda: alone(MovingAverage(0.9, second_view=True)),
    "dlb": lambda: alone(LastMiniBatch()),
    "cs-kd": lambda: alone(Classmate()),
    "ddgsd": lambda: alone(TwoViews()),
    "kdcl, shares": kdcl,
}


class BothRemember(pl.Callback):
    """The memories of all processes are the same bits, and full."""

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.world_size > 1:  # else DDP would send whole memories at each forward
            ignored = trainer.model.parameters_to_ignore  # type: ignore[union-attr]
            assert {n for n, _ in pl_module.named_buffers() if n.endswith((".known", ".remembered"))} == {*ignored}
        own = {name: value for name, value in pl_module.state_dict().items() if "teaching" in name}
        for name, value in own.items():
            gathered = pl_module.all_gather(value)
            assert all(torch.equal(each, value) for each in gathered.reshape(trainer.world_size, *value.shape)), name
            assert not name.endswith("known") or value.all()


@pytest.mark.parametrize("name", tiered(METHODS, ["ema"]))
def test_two_processes_equal_one(name: str, tmp_path: Path) -> None:
    ends, metrics = [], []
    for devices in (1, 2):
        checkpoint = ModelCheckpoint(tmp_path / str(devices), save_last=True, save_top_k=0, every_n_epochs=1)
        run = train(
            METHODS[name](),
            digits(train_size=150, padding=1, validation=99),  # the last batch is smaller
            devices,
            callbacks=[checkpoint, BothRemember()],
            enable_checkpointing=True,
        )
        ends.append(torch.load(tmp_path / str(devices) / "last.ckpt", weights_only=True)["state_dict"])
        metrics.append({key: float(value) for key, value in run.callback_metrics.items()})
    assert ends[0].keys() == ends[1].keys()
    for key, value in ends[0].items():
        limit = 1e-5 if key.endswith("remembered") else 1e-6  # logits are sums of many weights
        assert float((value.double() - ends[1][key].double()).abs().max()) < limit, key
    assert metrics[0] == pytest.approx(metrics[1], abs=2e-6)
