"""The Trainer's options and the optimiser's mean what they say."""

from __future__ import annotations

import warnings
from typing import Any, ClassVar

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import GradientAccumulationScheduler, StochasticWeightAveraging
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau, StepLR
from torch.utils.data import DataLoader, TensorDataset

from kdlab import Knowledge
from kdlab.losses import Hint, RKDDistance, SoftTargets
from kdlab.models import resnet8
from tests.modules.cotraining import cotrainer
from tests.modules.tiny import (
    Logged,
    count_calls,
    digits,
    distiller,
    knowledge,
    pairs,
    same,
    terms,
    trainer,
    weights,
)


@pytest.mark.full
def test_bf16_trains() -> None:
    torch.manual_seed(0)
    module = distiller(
        student=resnet8(10, in_channels=1),
        knowledge={"soft": Knowledge(SoftTargets(4.0)), "rkd": Knowledge(RKDDistance(), 5.0)},
    )
    run = trainer(3, precision="bf16-mixed", limit_val_batches=1.0)
    run.fit(module, digits())
    assert float(run.callback_metrics["val/student_accuracy"]) > 0.3
    assert float(run.callback_metrics["loss/total"]) < 10
    assert {each.dtype for each in module.parameters()} == {torch.float32}


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_true_precisions_run(precision: Any) -> None:
    module = distiller(knowledge=knowledge(layers=("hidden.0", "hidden.0")))
    run = trainer(precision=precision, limit_val_batches=1.0)
    run.fit(module, digits())
    assert torch.isfinite(run.callback_metrics["loss/total"])


def test_clipping_bounds_the_step() -> None:
    module = distiller(optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1.0))
    start = weights(module.student)
    trainer(max_steps=1, gradient_clip_val=0.01).fit(module, pairs())
    moved = torch.cat([(value - start[name]).flatten() for name, value in weights(module.student).items()])
    assert float(moved.norm()) == pytest.approx(0.01, rel=1e-3)


def test_accumulating_half_batches_equals_whole_ones() -> None:
    results = []
    for batch_size, accumulate in ((8, 1), (4, 2)):
        module = distiller(
            knowledge={"soft": Knowledge(SoftTargets(2.0)), "hint": Knowledge(Hint(None), student_layers=["hidden.0"])}
        )
        trainer(2, accumulate_grad_batches=accumulate).fit(module, pairs(batch_size=batch_size))
        results.append(weights(module.student))
    for name in results[0]:
        assert torch.allclose(results[0][name], results[1][name], atol=1e-6)


def test_parameters_of_a_users_loss_are_trained() -> None:
    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(10, 10)

        def forward(self, student: Any, teacher: Any, target: Tensor) -> Tensor:
            return (self.head(student.logits) - teacher.logits).square().mean()

    loss = Head()
    start = weights(loss)
    trainer(max_steps=1).fit(distiller(knowledge={"mine": Knowledge(loss)}), pairs())
    assert not any(torch.equal(value, start[name]) for name, value in weights(loss).items())


def test_max_steps_are_steps() -> None:
    module = distiller(knowledge=knowledge(layers=("hidden.0", "hidden.0")))
    run = trainer(max_steps=7)
    calls = count_calls(module.student)
    run.fit(module, pairs())
    assert run.global_step == 7
    assert len(calls) == 1 + 7


def test_parameter_groups() -> None:
    module = distiller(
        knowledge=knowledge(layers=("hidden.0", "hidden.0")),
        parameter_groups={"student": {"lr": 0.3}, "student.fc": {"lr": 0.2}, "losses.hint": {"weight_decay": 0.5}},
    )
    run = trainer(max_steps=1)
    run.fit(module, pairs())
    groups = run.optimizers[0].param_groups
    assert [(each["lr"], each["weight_decay"], len(each["params"])) for each in groups] == [
        (0.3, 0, 2),
        (0.2, 0, 2),
        (0.1, 0.5, 4),
    ]


@pytest.mark.filterwarnings("ignore:When using `Trainer.accumulate_grad_batches")
@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({}, 10),
        ({"accumulate_grad_batches": 2}, 6),
        ({"limit_train_batches": 3}, 6),
        ({"limit_train_batches": 0.5}, 4),
        ({"max_steps": 7, "max_epochs": 9}, 7),
        ({"max_steps": 7}, 7),
        ({"overfit_batches": 3}, 6),
        ({"callbacks": [GradientAccumulationScheduler({0: 2, 1: 3})]}, 3 + 2),
    ],
)
def test_one_cycle_finds_its_length(options: dict[str, Any], steps: int) -> None:
    module = distiller(lr_scheduler=lambda optimizer, **length: OneCycleLR(optimizer, max_lr=0.1, **length))
    run = trainer(2, **options)
    run.fit(module, pairs())
    scheduler = run.lr_scheduler_configs[0].scheduler
    assert run.global_step == steps
    assert (scheduler.total_steps, scheduler.last_epoch) == (steps, steps)


def test_the_epoch_that_swa_adds_takes_no_steps() -> None:
    module = distiller(student=nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 10)))
    run = trainer(2, callbacks=[StochasticWeightAveraging(0.1, 2)])
    for _ in range(2):  # in the second fit the loader is there before the first step
        run.fit_loop.epoch_progress.reset()
        run.fit(module, pairs())
        assert module.length.steps == 10


def test_other_schedulers_step_each_epoch() -> None:
    module = distiller(lr_scheduler=lambda optimizer: StepLR(optimizer, 1, gamma=0.1))
    run = trainer(3)
    run.fit(module, pairs())
    assert run.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.1 * 0.1**3)


@pytest.mark.parametrize(("mode", "watched"), [("min", "val/loss"), ("max", "val/student_accuracy")])
def test_a_plateau_is_one_of_what_its_mode_means(mode: Any, watched: str) -> None:
    module = distiller(lr_scheduler=lambda optimizer: ReduceLROnPlateau(optimizer, mode))
    run = trainer(2, limit_val_batches=1.0)
    run.fit(module, pairs())
    assert run.lr_scheduler_configs[0].monitor == watched
    assert run.lr_scheduler_configs[0].scheduler.best == pytest.approx(float(run.callback_metrics[watched]), rel=0.5)


def test_a_plateau_of_co_training_watches_what_is_deployed() -> None:
    rates: list[float] = []

    class Note(pl.Callback):
        def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    def plateau(optimizer: torch.optim.Optimizer) -> ReduceLROnPlateau:  # nothing is better by 2, so each epoch is bad
        return ReduceLROnPlateau(optimizer, "max", patience=0, threshold=2.0, threshold_mode="abs")

    module = cotrainer(lr_scheduler=plateau, deploy="b")
    before = weights(module)
    run = trainer(3, limit_val_batches=1.0, callbacks=[Note()])
    run.fit(module, digits())
    (config,) = run.lr_scheduler_configs
    assert config.monitor == "val/deployed_accuracy"
    assert run.callback_metrics["val/deployed_accuracy"] == run.callback_metrics["val/b_accuracy"]
    assert 0 < config.scheduler.best <= 1
    assert rates == pytest.approx([0.1, 0.1, 0.01])
    assert not any(torch.equal(value, before[name]) for name, value in weights(module).items())


def test_distilling_without_labels() -> None:
    module = distiller(task_weight=0.0)
    run = trainer(logger=(logged := Logged()))
    run.fit(module, pairs())
    assert terms(logged.rows[0][1]) == {"total", "soft"}
    shuffled = distiller(task_weight=0.0)
    x, y = pairs().dataset.tensors  # type: ignore[attr-defined]
    trainer().fit(shuffled, DataLoader(TensorDataset(x, y.flip(0)), 8))
    assert same(weights(module.student), weights(shuffled.student))


def test_a_loss_is_dry_run_in_eval_mode_and_trained_in_train_mode() -> None:
    class Notes(nn.Module):
        """Stands for a loss that fills a bank while it trains."""

        modes: ClassVar[list[bool]] = []

        def forward(self, student: Any, teacher: Any, target: Tensor) -> Tensor:
            self.modes.append(self.training)
            return student.logits.square().mean()

    trainer(2, limit_val_batches=1.0).fit(distiller(knowledge={"notes": Knowledge(Notes())}), pairs())
    assert Notes.modes == [False] + [True] * 10


def test_a_fit_warns_of_nothing() -> None:
    both = knowledge(layers=("hidden.0", "hidden.0"))
    module = distiller(knowledge=both, lr_scheduler=lambda optimizer, **length: OneCycleLR(optimizer, 0.1, **length))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run = trainer(2, limit_val_batches=1.0, logger=Logged())
        run.fit(module, digits())
        run.test(module, digits(), verbose=False)
    said = {str(each.message) for each in caught if "LeafSpec" not in str(each.message)}  # Lightning's own, of torch
    assert not said
