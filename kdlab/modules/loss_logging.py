"""Logging of loss terms: collected on the device, reduced to means, continued by a run that is resumed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from torch import Tensor

from kdlab.compat import pending_row
from kdlab.outputs.task_format import TaskFormat

Terms = Mapping[str, tuple[Tensor, float]]
"""The terms of a loss by name: value and weight."""
MOST = 256
"""The number of values of one term that are kept before they are summed."""


class LossLog:
    """The values of every loss term, raw and weighted, without waiting for the device.

    A step only keeps references; the arithmetic is done once for many steps. :meth:`flush` returns the means over the
    steps since the last flush: ``loss/total``; for each term ``loss/NAME`` (raw), ``loss/NAME_weighted`` and
    ``weight/NAME``; and for each student ``train/NAME_accuracy``, its accuracy on the training batches.
    """

    def __init__(self) -> None:
        self._terms: dict[str, list[tuple[Tensor, float]]] = {}  # of each step value and weight
        self._right: dict[str, list[tuple[Tensor, Tensor | None]]] = {}
        self._sums: dict[str, tuple[Tensor | float, Tensor | int]] = {}
        self._in_step: set[str] = set()
        self._row: tuple[dict[str, float], int] | None = None

    def add(
        self,
        terms: Terms,
        total: Tensor,
        logits: Mapping[str, Tensor],
        target: Tensor,
        same_step: bool = False,
        form: TaskFormat | None = None,
        ignore: int | None = None,
    ) -> None:
        """Add the terms (value, weight) of one forward, and whether each student's logits are right.

        ``same_step``: the forward belongs to the last step, in which networks are updated one after another: a step's
        terms are summed. ``form``: what logits and targets mean; accuracies are of class indices alone, those that are
        ``ignore`` left out.
        """
        if not same_step:
            if len(self._terms.get("", ())) == MOST:
                self._sum()
            self._in_step.clear()
            if form is not None and form.has_classes and not target.is_floating_point():
                labels = target.flatten()
                for name, own in logits.items():
                    rows = own if own.dim() == 2 else form.rows(own)
                    if len(rows) == len(labels):
                        counted = None if ignore is None else labels != ignore
                        right = rows.argmax(1) == labels, counted
                        self._right.setdefault(f"train/{name}_accuracy", []).append(right)
        for name, (value, weight) in {"": (total, 1.0), **terms}.items():
            steps = self._terms.setdefault(name, [])
            if name in self._in_step:
                steps[-1] = steps[-1][0] + value.detach(), weight
            else:
                self._in_step.add(name)
                steps.append((value.detach(), weight))

    def _sum(self) -> None:
        for name, steps in self._terms.items():
            values, weights = torch.stack([value for value, _ in steps]), [weight for _, weight in steps]
            self._note(f"loss/{name or 'total'}", values.sum(), len(steps))
            if name:
                self._note(f"loss/{name}_weighted", (values * values.new_tensor(weights)).sum(), len(steps))
                self._note(f"weight/{name}", sum(weights), len(steps))
        for key, right in self._right.items():
            both = torch.cat([hits for hits, _ in right])
            counts = [counted for _, counted in right if counted is not None]
            self._note(key, both.sum(), torch.cat(counts).sum() if counts else len(both))
        self._terms, self._right = {}, {}

    def _note(self, key: str, value: Tensor | float, count: Tensor | int) -> None:
        total, before = self._sums.get(key, (None, 0))
        self._sums[key] = value if total is None else total + value, before + count

    def flush(self) -> dict[str, Tensor | float]:
        """Return the means since the last flush, by key; empty if there was no step."""
        self._sum()
        means = {key: total / count for key, (total, count) in self._sums.items()}
        self._sums = {}
        return means

    # A run that is resumed logs what one that was never stopped logs

    def save(self, trainer: pl.Trainer, checkpoint: dict[str, Any]) -> None:
        """Save the sums of each process since the last flush, and the row that is logged after the checkpoint."""
        self._sum()
        sums: list[Any] = [{key: (float(total), int(count)) for key, (total, count) in self._sums.items()}]
        if trainer.world_size > 1:
            sums *= trainer.world_size
            dist.all_gather_object(sums, sums[0])
        checkpoint["kdlab_log"] = {"sums": sums, "row": pending_row(trainer)}

    def load(self, checkpoint: Mapping[str, Any], rank: int) -> None:
        """Continue with what was saved."""
        saved = checkpoint.get("kdlab_log") or {"sums": [], "row": None}
        self._terms, self._right = {}, {}
        self._sums = dict(saved["sums"][rank]) if rank < len(saved["sums"]) else {}
        self._row = saved["row"]

    def resume(self, trainer: pl.Trainer) -> None:
        """Log the row that a kill right after the checkpoint would have lost; logged twice, it is the same."""
        if self._row is not None and trainer.ckpt_path:
            for logger in trainer.loggers:
                logger.log_metrics(*self._row)
                logger.save()
        self._row = None


class LoggedModule(pl.LightningModule):
    """A module with a log of its losses, which a run that is resumed continues."""

    def __init__(self) -> None:
        super().__init__()
        self._log = LossLog()

    def log_row(self, values: Mapping[str, Tensor | float], step: int | None = None) -> None:
        """Log scalars of this step, or of another, means over the processes, all at once.

        ``self.log`` costs 0.25 ms for each of them, and Lightning goes through what was logged in every later step.
        """
        trainer, usual = self.trainer, torch.get_default_dtype()
        tensors = [
            x if isinstance(x, Tensor) else torch.tensor(x, dtype=torch.promote_types(usual, torch.float32))
            for x in values.values()
        ]
        # At least float32, also where all is computed in less.
        numbers = torch.stack([x.to(self.device, torch.promote_types(x.dtype, torch.float32)) for x in tensors])
        numbers = trainer.strategy.reduce(numbers, reduce_op="mean")
        trainer.callback_metrics.update(zip(values, numbers.unbind(), strict=True))
        trainer.logged_metrics.update(zip(values, numbers.unbind(), strict=True))
        row = {**dict(zip(values, numbers.tolist(), strict=True)), "epoch": self.current_epoch}
        for logger in trainer.loggers:
            logger.log_metrics(row, self.global_step if step is None else step)
            logger.save()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the log."""
        super().on_save_checkpoint(checkpoint)
        self._log.save(self.trainer, checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Continue with the log of the run that is resumed."""
        super().on_load_checkpoint(checkpoint)
        self._log.load(checkpoint, self.global_rank)

    def on_train_start(self) -> None:
        """Log what a kill may have lost."""
        super().on_train_start()
        self._log.resume(self.trainer)

    def on_fit_end(self) -> None:
        """Log it where a training that was over is resumed, which does not start again."""
        super().on_fit_end()
        self._log.resume(self.trainer)
