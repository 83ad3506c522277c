"""What a step costs over Lightning alone, counted in calls: the same number on every machine."""

from __future__ import annotations

import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import kdlab
from kdlab import Distiller, Knowledge
from kdlab.losses import CRD, CurriculumTemperature, SoftTargets
from kdlab.modules.early_setup import EarlySetup
from kdlab.modules.monitors import MonitorCheck
from kdlab.modules.position_weights import PositionWeights
from tests.modules.tiny import Logged, digits, distiller, trainer

STEP = 3
"""The step that is counted, after those that find out what the networks do."""


class Lean(pl.LightningModule):
    """KD with as little around it as Lightning allows."""

    def __init__(self) -> None:
        super().__init__()
        self.student, self.teacher = linear(), linear().eval().requires_grad_(False)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        with torch.no_grad():
            teacher = self.teacher(batch[0])
        student = self.student(batch[0])
        log_p, log_q = F.log_softmax(student / 4, 1), F.log_softmax(teacher / 4, 1)
        kl = F.kl_div(log_p, log_q, reduction="batchmean", log_target=True)
        return 0.1 * F.cross_entropy(student, batch[1]) + 0.9 * 16 * kl

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        pass

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.student.parameters(), 0.05, momentum=0.9, weight_decay=5e-4, fused=True)


def linear() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 10))


class Batches(list[tuple[Tensor, Tensor]]):
    """Batches as a loader that is only a list; it counts all that happens between two of them."""

    def __init__(self, count: int) -> None:
        super().__init__([(torch.randn(4, 3, 4, 4), torch.arange(4)) for _ in range(count)])
        self.calls = 0
        self.functions: set[tuple[str, str]] = set()

    def __iter__(self) -> Any:
        for number in range(len(self)):
            sys.setprofile(self._count if number == STEP + 1 else None)
            yield self[number]
        sys.setprofile(None)

    def _count(self, frame: FrameType, event: str, arg: Any) -> None:
        if event in ("call", "c_call"):
            self.calls += 1
        if event == "call" and frame.f_code.co_filename.startswith(kdlab.__path__[0]):
            self.functions.add((frame.f_code.co_filename, frame.f_code.co_qualname))


def counted(module: pl.LightningModule) -> Batches:
    """One epoch, of which one step is counted."""
    batches = Batches(STEP + 4)
    run = trainer(1, log_every_n_steps=50)
    run.fit(module, batches)
    assert batches.calls
    return batches


def distilled() -> Distiller:
    return Distiller(linear(), linear(), {"kd": Knowledge(SoftTargets(4.0), weight=0.9)}, task_weight=0.1)


def test_a_step_makes_few_calls_more_than_lightning_alone() -> None:
    ours, lean = counted(distilled()), counted(Lean())
    assert ours.calls <= lean.calls + 50


def test_a_step_passes_through_few_functions() -> None:
    functions = {(file, name) for file, name in counted(distilled()).functions if not name.endswith(">")}
    assert len(functions) <= 45
    assert len({file for file, _ in functions}) <= 16


class Present(pl.Callback):
    """The callbacks of the Trainer in a step."""

    def on_train_batch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        self.seen = list(trainer.callbacks)  # type: ignore[attr-defined]


@pytest.mark.parametrize(("batches", "weighs"), [(1, False), (2, True)])
def test_only_callbacks_with_work_are_there_in_a_step(batches: int, weighs: bool) -> None:
    idle, advances = Knowledge(SoftTargets(4.0)), Knowledge(CurriculumTemperature())
    updates = Knowledge(CRD(16, width=8))
    module = distiller(knowledge={"idle": idle, "advances": advances, "updates": updates})
    for _ in range(2):  # a second fit prepares anew
        present = Present()
        trainer(1, callbacks=[present], accumulate_grad_batches=batches).fit(module, digits())
        kinds = [type(each) for each in present.seen]
        assert EarlySetup not in kinds
        assert MonitorCheck not in kinds
        assert (PositionWeights in kinds) is weighs
        assert [each for each in present.seen if isinstance(each, Knowledge)] == [advances, updates]


class Extended(Knowledge):
    """A knowledge with a hook and a state of its own, as a user may write it."""

    epochs = 0

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.epochs += 1

    def state_dict(self) -> dict[str, Any]:
        return {"epochs": self.epochs}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.epochs = state_dict["epochs"]


def test_hooks_and_state_of_a_users_knowledge_count(tmp_path: Path) -> None:
    for epochs, resumed in ((2, None), (3, tmp_path / "last.ckpt")):
        extended = Extended(SoftTargets(2.0))
        run = trainer(epochs)
        run.fit(distiller(knowledge={"mine": extended}), digits(), ckpt_path=resumed)
        run.save_checkpoint(tmp_path / "last.ckpt")
        assert extended.epochs == epochs


class Results(pl.Callback):
    """How many values Lightning goes through in every step."""

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        assert trainer._results is not None
        self.count = len(trainer._results)


@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-true"])
def test_a_row_of_losses_is_logged_at_once(precision: Any) -> None:
    results, logged = Results(), Logged()
    module = distiller(knowledge={"kd": Knowledge(SoftTargets(2.0), 0.9)}, task_weight=0.1)
    run = trainer(1, callbacks=[results], logger=logged, log_every_n_steps=5, precision=precision)
    run.fit(module, digits())
    assert results.count == 0
    ((step, row),) = ((step, values) for step, values in logged.rows if "loss/task" in values)
    assert step == 4
    assert row["epoch"] == 0
    wide = torch.float64 if precision == "64-true" else torch.float32
    for name, value in row.items():
        if name != "epoch":
            assert float(run.callback_metrics[name]) == float(run.logged_metrics[name]) == value
            assert run.callback_metrics[name].dtype in (torch.float32, wide)
    assert row["weight/kd"] == float(torch.tensor(0.9, dtype=wide))
