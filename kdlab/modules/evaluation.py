"""What validation and test share: mean losses, remembered teacher logits, reports."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor
from torchmetrics import MeanMetric


class EvaluatedLoss(MeanMetric):
    """The mean of a loss over samples, from its means over batches."""

    def __init__(self) -> None:
        super().__init__(nan_strategy="disable")

    def add(self, loss: Tensor, target: Tensor) -> None:
        """Add the mean loss of a batch with labels ``target`` (B, ...)."""
        # Once a sample: torchmetrics ignores weights where it does not look for nan, and looking waits for the device.
        self.update(loss.expand(len(target)))


class RememberedLogits:
    """A frozen teacher's logits on evaluation batches: computed once a run, then remembered (N x K numbers)."""

    def __init__(self) -> None:
        self._known: dict[bytes, Tensor] = {}
        self._used: set[bytes] = set()

    def __call__(self, inputs: Any, compute: Callable[[], Tensor]) -> Tensor:
        """Return the logits on ``inputs``."""
        first = next(iter(inputs.values())) if isinstance(inputs, Mapping) else inputs
        # One number a sample, weighted by position: changed, flipped or reordered inputs are another batch.
        flat = first.flatten(1).float()
        key = (flat * torch.linspace(1, 2, flat.shape[1], device=flat.device)).sum(1).cpu().numpy().tobytes()
        self._used.add(key)
        if key not in self._known:
            self._known[key] = compute().cpu()
        return self._known[key].to(first.device)

    def values(self) -> list[Tensor]:
        """Return all remembered logits."""
        return [*self._known.values()]

    def keep_used(self) -> None:
        """Drop the logits of inputs that did not come again (random crops, another data set)."""
        self._known = {key: self._known[key] for key in self._used}
        self._used.clear()

    def clear(self) -> None:
        """Drop everything."""
        self._known.clear()
        self._used.clear()


def report(
    module: pl.LightningModule, stage: str, values: Mapping[str, Tensor], what: str, shown: Sequence[str]
) -> None:
    """Log the values of an evaluation.

    Args:
        module: logs them.
        stage: "val" or "test".
        values: by name, with "loss".
        what: whose loss it is, for the warning of a diverged training.
        shown: names of values for the progress bar.
    """
    if not values["loss"].isfinite():
        rank_zero_warn(
            f"{what} in {stage} is {float(values['loss'])}, so its numbers mean nothing: the training has diverged "
            "(lower the learning rate or a weight)."
        )
    for name, value in values.items():
        # Metrics reduce over processes themselves: with unequally many samples Lightning's mean of means is off.
        module.log(f"{stage}/{name}", value, prog_bar=name in shown, sync_dist=True)


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
