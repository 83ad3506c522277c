"""Every term of the loss is logged by its name, at little cost."""

from __future__ import annotations

from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from kdlab import Knowledge
from kdlab.losses import SoftTargets
from kdlab.outputs import Batch
from kdlab.schedules import Constant, Linear
from tests.modules.tiny import (
    Logged,
    distiller,
    network,
    pairs,
    terms,
    trainer,
)


def test_the_loss_is_the_weighted_sum() -> None:
    module = distiller(task_weight=0.25, knowledge={"a": Knowledge(SoftTargets(4.0), 0.9)})
    run = trainer()
    run.fit(module, pairs(8, 8))
    seen = run.callback_metrics
    expected = 0.25 * seen["loss/task"] + 0.9 * seen["loss/a"]
    assert torch.allclose(seen["loss/total"], expected)
    assert torch.allclose(seen["loss/a_weighted"], 0.9 * seen["loss/a"])
    assert (float(seen["weight/a"]), float(seen["weight/task"])) == (pytest.approx(0.9), 0.25)
    torch.manual_seed(0)
    batch = Batch.of(next(iter(pairs(8, 8))))
    student, teacher = network()(batch.inputs), network(1)(batch.inputs)
    kl = 16 * nn.KLDivLoss(reduction="batchmean")((student / 4).log_softmax(1), (teacher / 4).softmax(1))
    assert torch.allclose(seen["loss/a"], kl.detach())
    assert torch.allclose(seen["loss/task"], nn.functional.cross_entropy(student, batch.target).detach())


def test_without_labels_the_temperature_still_scales() -> None:
    module = distiller(task_weight=0.0, knowledge={"soft": Knowledge(SoftTargets(4.0), 0.5)})
    inputs = next(iter(pairs(8, 8)))[0]
    student, teacher = (net(inputs).detach().double() / 4 for net in (network(), network(1)))
    kl = (teacher.softmax(1) * (teacher.log_softmax(1) - student.log_softmax(1))).sum() / 8
    run = trainer()
    run.fit(module, pairs(8, 8))
    assert float(run.callback_metrics["loss/total"]) == pytest.approx(0.5 * 16 * float(kl), abs=1e-6)  # float32


def test_terms_come_and_go_with_their_schedules() -> None:
    soft = {
        "soft": Knowledge(SoftTargets(2.0), 0.5, Constant(begin=1)),
        "ramp": Knowledge(SoftTargets(1.0), 2.0, Linear(4)),
    }
    module = distiller(knowledge=soft, task_schedule=Constant(until=2))
    trainer(3, logger=(logged := Logged())).fit(module, pairs(8, 8))
    assert [terms(row) for _, row in logged.rows] == [
        {"total", "task"},
        {"total", "task", "soft", "ramp"},
        {"total", "soft", "ramp"},
    ]
    assert [row.get("weight/ramp") for _, row in logged.rows] == [None, 0.5, 1.0]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_terms_are_logged_as_means_every_few_steps(accumulate: int) -> None:
    module = distiller()
    totals: list[Tensor] = []

    class Note(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, *_: Any) -> None:
            totals.append(outputs["loss"].detach() * accumulate)

    run = trainer(
        logger=(logged := Logged()), log_every_n_steps=3, accumulate_grad_batches=accumulate, callbacks=[Note()]
    )
    run.fit(module, pairs(8 * 8 * accumulate, 8))
    assert [step for step, _ in logged.rows] == [2, 5, 7]  # steps 3 and 6, and what is left at the end
    expected = [
        float(torch.stack(part).mean()) for part in (totals[: 3 * accumulate], totals[3 * accumulate : 6 * accumulate])
    ]
    assert [row["loss/total"] for _, row in logged.rows[:2]] == pytest.approx(expected, rel=1e-5)


def test_a_step_does_not_log_at_other_steps() -> None:
    module = distiller()
    module.log = lambda *_, **__: pytest.fail("logged")  # type: ignore[method-assign]
    module.log_dict = lambda *_, **__: pytest.fail("logged")  # type: ignore[method-assign]
    module.log_row = lambda *_: pytest.fail("logged")  # type: ignore[method-assign]
    trainer(log_every_n_steps=0).fit(module, pairs())


def test_the_evaluation_loss_is_the_mean_over_samples_and_shows_nan() -> None:
    module = distiller()
    (values,) = trainer(limit_val_batches=1.0).validate(module, pairs(21, 8), verbose=False)
    x, y = pairs(21).dataset.tensors  # type: ignore[attr-defined]
    assert values["val/loss"] == pytest.approx(nn.functional.cross_entropy(module.student(x), y).item(), rel=1e-6)
    with torch.no_grad():
        module.student.fc.bias.fill_(float("nan"))  # type: ignore[union-attr]
    with pytest.warns(UserWarning, match="The student's loss in val is nan, so its numbers mean nothing"):
        (values,) = trainer(limit_val_batches=1.0).validate(module, pairs(21, 8), verbose=False)
    assert values["val/loss"] != values["val/loss"]
