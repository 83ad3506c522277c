"""The loss of one lesson: whose samples, and whose labels."""

from __future__ import annotations

import math
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdlab import Knowledge
from kdlab.outputs import Batch, Outputs
from kdlab.teaching import Classmates, LastMiniBatch
from tests.losses.slow import softmax
from tests.modules.cotraining import cotrainer
from tests.modules.tiny import digits, network, trainer


class ReadsLabels(nn.Module):
    """Cross-entropy, as a lesson."""

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        return F.cross_entropy(student.logits, target)


@pytest.mark.parametrize("teaching", [LastMiniBatch(), Classmates(3)], ids=["DLB", "BAKE"])
def test_a_lesson_on_other_samples_has_their_labels(teaching: Any) -> None:
    expected: list[float] = []
    got: list[float] = []

    class Watch(pl.Callback):
        before: list[int] | None = None

        def on_train_batch_start(self, trainer: Any, module: Any, batch: Batch, number: int) -> None:
            assert batch.views is not None
            own, shown = batch.target.tolist(), batch.views[teaching.view].inputs
            if isinstance(teaching, Classmates):  # the batch, and three images of each sample's class, side by side
                inputs, labels = torch.cat([batch.inputs, shown]), [*own, *(y for y in own for _ in range(3))]
            else:  # the batch before alone
                inputs, labels = shown, self.before
            if labels:
                rows = zip(module.networks["net"](inputs).tolist(), labels, strict=True)
                expected.append(sum(-math.log(softmax(row)[label]) for row, label in rows) / len(labels))
            self.before = own

        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            if "loss/labels" in trainer.callback_metrics:
                got.append(float(trainer.callback_metrics["loss/labels"]))

    module = cotrainer({"net": network()}, knowledge={"labels": Knowledge(ReadsLabels())}, teaching=teaching)
    trainer(max_steps=4, callbacks=[Watch()]).fit(module, digits(padding=1))
    assert len(got) == (4 if isinstance(teaching, Classmates) else 3)
    assert got == pytest.approx(expected, rel=1e-5)
