"""Validation and test: mean losses, metrics, remembered teacher logits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor, nn
from torchmetrics import MeanMetric

from kdlab.metrics import Cohort, StudentVersusTeacher
from kdlab.outputs import Batch, logits_of


class EvaluatedModule(pl.LightningModule):
    """The evaluation of a module: the mean of its task loss, and metrics."""

    task: nn.Module
    metrics: StudentVersusTeacher | Cohort
    shown: ClassVar[tuple[str, ...]]  # names of values for the progress bar
    reported: str  # whose loss it is, for the warning of a diverged training

    def __init__(self) -> None:
        super().__init__()
        self._loss = MeanMetric(nan_strategy="disable")

    def evaluate_batch(self, batch: Batch) -> Tensor:
        """Add a batch to the metrics; return the logits whose loss is reported."""
        raise NotImplementedError(f"{type(self).__name__} must define evaluate_batch().")

    def validation_step(self, raw: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Evaluate one batch."""
        batch = Batch.of(raw)
        loss = self.task(self.evaluate_batch(batch), batch.target)
        # Once a sample: torchmetrics ignores weights where it does not look for nan, and looking waits for the device.
        self._loss.update(loss.expand(len(batch.target)))

    test_step = validation_step

    def predict_step(self, raw: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Return the deployed logits, (B, K); a batch may be inputs alone."""
        return logits_of(self(raw if isinstance(raw, Tensor) else Batch.of(raw).inputs))

    def on_validation_epoch_end(self) -> None:
        """Report."""
        self._report("val")

    def on_test_epoch_end(self) -> None:
        """Report."""
        self._report("test")

    def _report(self, stage: str) -> dict[str, Tensor]:
        """Log the values of an evaluation, and return them."""
        values = {"loss": self._loss.compute(), **self.metrics.compute()}
        self._loss.reset()
        self.metrics.reset()
        if not values["loss"].isfinite():
            rank_zero_warn(
                f"{self.reported} in {stage} is {float(values['loss'])}, so its numbers mean nothing: the training has "
                "diverged (lower the learning rate or a weight)."
            )
        for name, value in values.items():
            # Metrics reduce over processes themselves: with unequally many samples Lightning's mean of means is off.
            self.log(f"{stage}/{name}", value, prog_bar=name in self.shown, sync_dist=True)
        return values


class RememberedLogits(dict[bytes, Tensor]):
    """A frozen teacher's logits on evaluation batches: computed once a run, then remembered (N x K numbers)."""

    def __init__(self) -> None:
        super().__init__()
        self._used: set[bytes] = set()

    def look(self, inputs: Any, compute: Callable[[], Tensor]) -> Tensor:
        """Return the logits on ``inputs``."""
        first = next(iter(inputs.values())) if isinstance(inputs, Mapping) else inputs
        # One number a sample, weighted by position: changed, flipped or reordered inputs are another batch.
        flat = first.flatten(1).float()
        key = (flat * torch.linspace(1, 2, flat.shape[1], device=flat.device)).sum(1).cpu().numpy().tobytes()
        self._used.add(key)
        if key not in self:
            self[key] = compute().cpu()
        return self[key].to(first.device)

    def keep_used(self) -> None:
        """Drop the logits of inputs that did not come again (random crops, another data set)."""
        for key in self.keys() - self._used:
            del self[key]
        self._used.clear()


def warn_of_teacher(values: Mapping[str, Tensor], logits: Sequence[Tensor]) -> None:
    """Warn of a teacher whose accuracy on the first validation samples is near chance."""
    if not logits or "teacher_accuracy" not in values:
        return
    samples, chance, accuracy = sum(map(len, logits)), 1 / logits[0].shape[-1], float(values["teacher_accuracy"])
    if samples >= 20 and accuracy < 2 * chance:
        rank_zero_warn(
            f"The teacher is right on {accuracy:.1%} of the first {samples} validation samples, near chance "
            f"({chance:.1%}): are its weights loaded, and do its classes have the same order?"
        )
