"""Two processes (gloo, CPU) do what one does on the same global batches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

from kdlab import Distiller, Knowledge
from kdlab.losses import DIST, ITRD, Hint, RKDDistance, SoftTargets
from kdlab.outputs import Outputs
from kdlab.schedules import Constant
from tests.data.tiny import Tiny
from tests.modules.tiny import digits, distiller, network, pairs, sgd, trainer, weights
from tests.tiers import tiered

# Lightning says so of every forked process, and cannot know that the loaders here share out the samples themselves.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")


def train(module: Distiller, data: Any, devices: int, epochs: int = 2, **options: Any) -> pl.Trainer:
    # Forked rather than spawned processes: these need not import all of torch again.
    strategy = {"strategy": "ddp_fork", "devices": devices} if devices > 1 else {}
    run = trainer(epochs, limit_val_batches=1.0, **strategy, **options)
    pl.seed_everything(0, verbose=False)
    run.fit(module, data)
    return run


def soft_and_hint() -> dict[str, Knowledge]:
    """No BatchNorm: its statistics would be those of half a batch, and torch has SyncBatchNorm for GPUs alone."""
    hint = Knowledge(Hint("1x1"), 0.5, student_layers=["hidden.0"], teacher_layers=["hidden.0"])
    return {"soft": Knowledge(SoftTargets(4.0), 0.9), "hint": hint}


class Normed(nn.Module):
    """A loss with BatchNorm, whose statistics are those of all samples where these are gathered."""

    needs = ("logits",)

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(10)

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        return (self.norm(student.logits) - teacher.logits).square().mean()


def coupled() -> dict[str, Knowledge]:
    """Losses that compare the samples of a batch."""
    losses = {"dist": DIST(), "rkd": RKDDistance(), "itrd": ITRD(), "normed": Normed()}
    return {name: Knowledge(loss, 0.1, gather=True) for name, loss in losses.items()}


@pytest.mark.parametrize(("knowledge", "accumulate"), tiered([(soft_and_hint, 1), (coupled, 2)], [(coupled, 2)]))
def test_two_processes_equal_one(knowledge: Callable[[], Any], accumulate: int, tmp_path: Path) -> None:
    precision = "32-true" if knowledge is soft_and_hint else "64-true"  # of losses with values of about 10
    ends, metrics = [], []
    for devices in (1, 2):
        module = distiller(teacher=network(1, (24,)), knowledge=knowledge(), optimizer=sgd)
        checkpoint = ModelCheckpoint(tmp_path / str(devices), save_last=True, save_top_k=0, every_n_epochs=1)
        run = train(
            module,
            digits(train_size=150),  # the last batch is smaller
            devices,
            callbacks=[checkpoint],
            enable_checkpointing=True,
            accumulate_grad_batches=accumulate,
            precision=precision,
        )
        ends.append(torch.load(tmp_path / str(devices) / "last.ckpt", weights_only=True)["state_dict"])
        metrics.append({name: float(value) for name, value in run.callback_metrics.items()})
    assert {name.split(".")[0] for name in ends[0]} == {"student", "losses"}
    assert ends[0].keys() == ends[1].keys()
    for name in ends[0]:
        assert float((ends[0][name].double() - ends[1][name].double()).abs().max()) < 1e-6, name
    assert metrics[0].keys() == metrics[1].keys()
    assert metrics[0] == pytest.approx(metrics[1], abs=2e-6)


class Told(pl.Callback):
    """DDP was told, and the run came to its end."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert trainer.strategy._ddp_kwargs.get("find_unused_parameters") is True  # type: ignore[attr-defined]

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert trainer.global_step == 10


@pytest.mark.parametrize("case", tiered(["features alone", "later", "task later"], ["later"]))
def test_parameters_without_gradient(case: str) -> None:
    hint = Knowledge(Hint("1x1"), 0.5, student_layers=["hidden.0"])
    options: dict[str, Any] = {"knowledge": {"hint": hint}}
    if case == "features alone":
        options["task_weight"] = 0.0
    elif case == "later":
        hint.schedule = Constant(begin=1)
    else:
        options["task_schedule"] = Constant(begin=1)
    module = distiller(**options)
    before = weights(module.student)
    train(module, digits(), devices=2, callbacks=[Told()])
    moved = [name for name, value in module.student.state_dict().items() if not torch.equal(value, before[name])]
    assert any(name.startswith("hidden") for name in moved)
    assert any(name.startswith("fc") for name in moved) == (case != "features alone")


def test_nothing_is_looked_for_where_all_parameters_get_a_gradient() -> None:
    class Look(pl.Callback):
        def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            assert "find_unused_parameters" not in trainer.strategy._ddp_kwargs  # type: ignore[attr-defined]

    train(distiller(knowledge=soft_and_hint()), digits(), devices=2, epochs=1, callbacks=[Look()])


def test_every_sample_is_evaluated_once() -> None:
    values = []
    for devices in (1, 2):
        module = distiller(student=network2(0), teacher=network2(1))
        run = train(module, Tiny(), devices, epochs=1, limit_train_batches=5)  # 5 times 4; a 21st would be left out
        shown = {name: float(value) for name, value in run.callback_metrics.items() if name.startswith("val/")}
        assert 21 * shown["val/student_accuracy"] == pytest.approx(round(21 * shown["val/student_accuracy"]), abs=1e-4)
        values.append(shown)
    assert values[0] == pytest.approx(values[1], abs=1e-6)


# Two processes have 11 and 10 samples of 21; of 17 one has none in its third batch.
@pytest.mark.parametrize("size", [21, pytest.param(17, marks=pytest.mark.full)])
def test_users_loaders_evaluate_every_sample_once(size: int) -> None:
    values = []
    for devices in (1, 2):
        module = distiller(teacher=network(1, (24,)), knowledge=soft_and_hint())
        strategy = {"strategy": "ddp_fork", "devices": devices} if devices > 1 else {}
        run = trainer(1, limit_val_batches=1.0, limit_train_batches=0, **strategy)
        shown = dict(run.validate(module, pairs(size, 4), verbose=False)[0])
        shown |= run.test(module, by_batches(size), verbose=False)[0]
        values.append(shown)
    right = size * values[0]["val/student_accuracy"]
    assert right == pytest.approx(round(right), abs=1e-4)
    assert values[0] == pytest.approx(values[1], abs=1e-6)


class Batches(BatchSampler):
    """A batch sampler of one's own; one of torch's class loses its batch size to Lightning."""


def by_batches(size: int) -> DataLoader[Any]:
    data: Any = pairs(size).dataset
    return DataLoader(data, batch_sampler=Batches(SequentialSampler(data), 4, False))


def network2(seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(40, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))


def test_processes_draw_differently_but_agree_on_the_seed(tmp_path: Path) -> None:
    class Note(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, module: Any, *rest: Any) -> None:
            torch.save((module._seed, torch.initial_seed()), tmp_path / f"{trainer.global_rank}-{rest[-1]}.pt")

    train(distiller(), digits(train_size=64), devices=2, epochs=1, callbacks=[Note()])
    seen = [torch.load(tmp_path / f"{rank}-{index}.pt") for rank in (0, 1) for index in (0, 1)]
    assert {seed for seed, _ in seen} == {0}
    assert len({drawn for _, drawn in seen}) == 4
