"""Every callback that Lightning ships, beside a frozen teacher and adapters; its finders leave no trace."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning import callbacks as lightning
from pytorch_lightning.demos.boring_classes import BoringModel
from pytorch_lightning.tuner import Tuner
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR

from kdlab import CoTrainer, Distiller, Knowledge
from kdlab.data import Digits
from kdlab.errors import InputError
from kdlab.losses import CRD, CurriculumTemperature, Hint, NormAndDirection, SoftTargets
from kdlab.teaching import MovingAverage, PreviousEpoch
from tests.modules.tiny import Logged, same, sgd, trainer, weights
from tests.tiers import tiered

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # Lightning's callbacks warn of each other
]


def net(seed: int, width: int = 8) -> nn.Sequential:
    """BatchNorm and dropout; the statistics are not those of a new network."""
    torch.manual_seed(seed)
    layers = [nn.Flatten(), nn.Linear(64, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.3)]
    made = nn.Sequential(*layers, nn.Linear(width, 10))
    made(torch.randn(32, 64) + 1)
    return made


class Backbone(Distiller):
    """As BackboneFinetuning wants it."""

    @property
    def backbone(self) -> nn.Module:
        return self.student[1]  # type: ignore[index,return-value]


def distiller(**options: Any) -> Distiller:
    knowledge = {
        "soft": Knowledge(SoftTargets(2.0)),
        "hint": Knowledge(Hint(), student_layers=["3"], teacher_layers=["3"]),
    }
    defaults = {"student": net(0), "teacher": net(1, 12), "knowledge": knowledge, "optimizer": sgd}
    return Backbone(**(defaults | options))


def data(batch_size: int = 16) -> Digits:
    return Digits(train_size=64, batch_size=batch_size)


def fit(module: pl.LightningModule, *callbacks: pl.Callback, batch_size: int = 16, **options: Any) -> Any:
    run = trainer(2, limit_val_batches=1, enable_checkpointing=True, callbacks=[*callbacks], logger=Logged(), **options)
    pl.seed_everything(0, verbose=False)
    run.fit(module, data(batch_size))
    return run


class Freeze(lightning.BaseFinetuning):
    """Frozen in the first epoch: the first layer of the student."""

    def freeze_before_training(self, pl_module: Any) -> None:
        self.freeze(pl_module.student[1])

    def finetune_function(self, pl_module: Any, epoch: int, optimizer: Any) -> None:
        if epoch == 1:
            self.unfreeze_and_add_param_group(pl_module.student[1], optimizer)


class Writer(lightning.BasePredictionWriter):
    """Writes nothing."""


ABSTRACT = {"Callback", "Checkpoint", "ProgressBar"}
WATCHING: dict[str, Callable[[Path], pl.Callback]] = {  # those after which the weights are as without
    "BasePredictionWriter": lambda folder: Writer(),
    "BatchSizeFinder": lambda folder: lightning.BatchSizeFinder(init_val=16, max_trials=1),
    "DeviceStatsMonitor": lambda folder: lightning.DeviceStatsMonitor(cpu_stats=False),
    "EarlyStopping": lambda folder: lightning.EarlyStopping("val/loss", patience=9),
    "LambdaCallback": lambda folder: lightning.LambdaCallback(on_fit_start=lambda *_: None),
    "LearningRateFinder": lambda folder: lightning.LearningRateFinder(num_training_steps=5, update_attr=False),
    "LearningRateMonitor": lambda folder: lightning.LearningRateMonitor(),
    "ModelCheckpoint": lambda folder: lightning.ModelCheckpoint(folder, monitor="val/loss"),
    "ModelSummary": lambda folder: lightning.ModelSummary(),
    "OnExceptionCheckpoint": lambda folder: lightning.OnExceptionCheckpoint(folder),
    "RichModelSummary": lambda folder: lightning.RichModelSummary(),
    "RichProgressBar": lambda folder: lightning.RichProgressBar(),
    "SpikeDetection": lambda folder: lightning.SpikeDetection(exclude_batches_path=folder, rtol=99.0),
    "ThroughputMonitor": lambda folder: lightning.ThroughputMonitor(lambda batch: 16),
    "Timer": lambda folder: lightning.Timer("00:01:00:00"),
    "TQDMProgressBar": lambda folder: lightning.TQDMProgressBar(),
}
CHANGING: dict[str, Callable[[Path], pl.Callback]] = {
    "BackboneFinetuning": lambda folder: lightning.BackboneFinetuning(unfreeze_backbone_at_epoch=1),
    "BaseFinetuning": lambda folder: Freeze(),
    "EMAWeightAveraging": lambda folder: lightning.EMAWeightAveraging(decay=0.5),
    "GradientAccumulationScheduler": lambda folder: lightning.GradientAccumulationScheduler({1: 2}),
    "ModelPruning": lambda folder: lightning.ModelPruning("l1_unstructured", amount=0.5),
    "StochasticWeightAveraging": lambda folder: lightning.StochasticWeightAveraging(0.05, 1, annealing_epochs=1),
    "WeightAveraging": lambda folder: lightning.WeightAveraging(),
}


def test_every_callback_of_lightning_is_tried() -> None:
    assert {*ABSTRACT, *WATCHING, *CHANGING} == {*lightning.__all__}


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    """The weights without any callback."""
    module = distiller()
    trainer_alone = trainer(2, limit_val_batches=1)
    pl.seed_everything(0, verbose=False)
    trainer_alone.fit(module, data())
    return weights(module)


@pytest.mark.full
@pytest.mark.parametrize("name", WATCHING)
def test_watching_callbacks_change_nothing(
    name: str, alone: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    module = distiller()
    shown = {"enable_progress_bar": True} if name.endswith("ProgressBar") else {}
    fit(module, WATCHING[name](tmp_path), default_root_dir=tmp_path, **shown)
    assert same(weights(module), alone)


@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-true"])
@pytest.mark.parametrize("name", CHANGING)
def test_changing_callbacks_run_beside_a_teacher(
    name: str, precision: Any, alone: dict[str, Any], tmp_path: Path
) -> None:
    if precision != "32-true" and not name.endswith("Averaging"):
        pytest.skip("does not touch what a precision converts")
    module = distiller()  # tests/teacher_guard.py watches the teacher and the checkpoint
    fit(module, CHANGING[name](tmp_path), default_root_dir=tmp_path, precision=precision)
    assert not same(weights(module), alone)
    assert all(value.isfinite().all() for value in weights(module).values())


def test_a_trainer_then_takes_another_kind_of_module(tmp_path: Path) -> None:
    run = fit(distiller(), default_root_dir=tmp_path)
    before = [type(each).__name__ for each in run.callbacks]
    assert "EarlySetup" not in before
    run.validate(BoringModel(), verbose=False)


# Finders


def stateful() -> dict[str, Callable[[], pl.LightningModule]]:
    """Modules whose losses and teachings keep something between steps."""
    crd = {"crd": Knowledge(CRD(16, width=8)), "warm": Knowledge(CurriculumTemperature())}
    means = {"means": Knowledge(NormAndDirection())}
    soft = {"soft": Knowledge(SoftTargets(2.0))}
    return {
        "banks": lambda: distiller(knowledge=crd),
        "means": lambda: distiller(student=net(0, 12), knowledge=means),
        "average": lambda: CoTrainer({"a": net(0)}, soft, MovingAverage(), optimizer=sgd),
        "past": lambda: CoTrainer({"a": net(0)}, soft, PreviousEpoch(), optimizer=sgd),
    }


@pytest.mark.parametrize("name", tiered(stateful(), ["banks"]))
def test_finders_leave_every_state_as_it_was(name: str, tmp_path: Path) -> None:
    results = []
    finders = [
        lightning.LearningRateFinder(num_training_steps=6, update_attr=False),
        lightning.BatchSizeFinder(init_val=16, max_trials=1),
    ]
    for callbacks in ([], finders):
        module = stateful()[name]()
        run = fit(module, *callbacks, default_root_dir=tmp_path)
        results.append((weights(module), run.logger.rows))
    assert same(results[0][0], results[1][0])
    assert results[0][1] == results[1][1]


@pytest.mark.full
def test_a_found_learning_rate_is_that_of_the_optimizer(tmp_path: Path) -> None:
    module = distiller(parameter_groups={"losses.hint": {"lr": 0.3}})
    before = weights(module.student)
    tuner = Tuner(trainer(2, default_root_dir=tmp_path, enable_checkpointing=True, limit_val_batches=1))
    found = tuner.lr_find(module, datamodule=data(4), num_training=20)
    assert found is not None
    assert module.lr == found.suggestion()
    assert same(weights(module.student), before)
    run = fit(module, default_root_dir=tmp_path)
    assert [group["lr"] for group in run.optimizers[0].param_groups] == [0.3, module.lr]
    module = distiller(parameter_groups={"losses.hint": {"lr": 0.3}})
    finder = lightning.LearningRateFinder(num_training_steps=20)
    run = fit(module, finder, batch_size=4, default_root_dir=tmp_path)
    assert finder.optimal_lr is not None
    assert [group["lr"] for group in run.optimizers[0].param_groups] == [0.3, finder.optimal_lr.suggestion()]


def one_cycle(optimizer: torch.optim.Optimizer, **length: Any) -> OneCycleLR:
    return OneCycleLR(optimizer, 0.1, **length)


def test_a_found_learning_rate_and_one_cycle_are_refused(tmp_path: Path) -> None:
    module, finder = distiller(lr_scheduler=one_cycle), lightning.LearningRateFinder(num_training_steps=20)
    with pytest.raises(InputError, match=r"OneCycleLR sets its own learning rate.*max_lr"):
        fit(module, finder, batch_size=4, default_root_dir=tmp_path)


@pytest.mark.full
def test_one_cycle_ends_with_the_batch_size_that_is_found(tmp_path: Path) -> None:
    rates: list[float] = []

    def note(trainer: Any, *_: Any) -> None:
        rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    finder = lightning.BatchSizeFinder(init_val=4, max_trials=2, steps_per_trial=1)
    noted = lightning.LambdaCallback(on_train_batch_start=note)
    run = fit(distiller(lr_scheduler=one_cycle), finder, noted, default_root_dir=tmp_path)
    assert run.datamodule.batch_size == 8  # 64 images, 2 epochs
    assert len(rates) == run.global_step == 16
    assert max(rates) == pytest.approx(0.1, rel=0.05)
    assert rates[-1] == pytest.approx(0.1 / 25 / 1e4)  # OneCycleLR's div_factor and final_div_factor
