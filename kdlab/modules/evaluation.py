"""Validation and test: mean losses, metrics, remembered teacher logits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_warn
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from kdlab.compat import tree_leaves
from kdlab.members.member import Member
from kdlab.metrics import Cohort, StudentVersusTeacher, TaskLoss
from kdlab.modules.repeated_samples import RepeatedSamples
from kdlab.outputs import Batch, Outputs, logits_of
from kdlab.outputs.task_format import TaskFormat
from kdlab.teaching.plan import Plan


class EvaluatedModule(pl.LightningModule):
    """The evaluation of a module: the mean of its task loss, and metrics, for each loader of a stage.

    With several loaders every key ends in ``/dataloader_idx_N``, as Lightning's own do.

    Attributes:
        form: what logits and targets mean in training.
    """

    task: nn.Module
    plan: Plan
    metrics: StudentVersusTeacher | Cohort
    shown: ClassVar[tuple[str, ...]]  # names of values for the progress bar
    reported: str  # whose loss it is, for the warning of a diverged training
    form: TaskFormat | None = None

    def __init__(self) -> None:
        super().__init__()
        self._losses = nn.ModuleList()
        self._repeated = RepeatedSamples()
        self._further = nn.ModuleList()  # metrics of all loaders but the first
        self._ranges: list[Tensor] = []  # of each batch: least and largest predicted class, least and largest label

    def observe(self, batch: Batch, members: Iterable[Member] | None = None) -> dict[str, Outputs]:
        """Run members of the plan and return their outputs by name."""
        raise NotImplementedError(f"{type(self).__name__} must define observe().")

    def evaluate(self, batch: Batch) -> dict[str, Outputs]:
        """Return the outputs by name of all members that run in evaluation."""
        members = [member for member in self.plan.members.values() if member.in_evaluation]
        return self.observe(batch._replace(progress=None), members)

    def evaluate_batch(self, batch: Batch, metrics: Any) -> tuple[Tensor, TaskFormat]:
        """Add a batch to the metrics; return the logits whose loss is reported, and what they mean."""
        raise NotImplementedError(f"{type(self).__name__} must define evaluate_batch().")

    def scored(self, batch: Batch) -> Batch:
        """Return a batch with the labels that count."""
        return batch

    def validation_step(self, raw: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Evaluate one batch, without the samples that fill up a process's part."""
        stage = self.trainer.test_dataloaders if self.trainer.testing else self.trainer.val_dataloaders
        batch = self._repeated.dropped(Batch.of(raw), tree_leaves(stage)[dataloader_idx], batch_idx)
        while len(self._losses) <= dataloader_idx:
            if len(self._losses):
                self._further.append(type(self.metrics)())
            self._losses.append(TaskLoss().to(self.device))
        if batch is None:
            return
        batch = self.scored(batch)
        logits, form = self.evaluate_batch(batch, [self.metrics, *self._further][dataloader_idx])
        weight = form.weight(self.task, batch.target)
        loss, is_sum = self.task(logits, batch.target), getattr(self.task, "reduction", "mean") == "sum"
        self._losses[dataloader_idx].update(loss, weight, is_sum)  # type: ignore[operator]
        if form.kind == "classes" and batch.target.numel():
            self._ranges.append(torch.stack([*form.rows(logits).argmax(1).aminmax(), *batch.target.aminmax()]))

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
        """Log the values of an evaluation, and return those of the first loader."""
        values: dict[str, Tensor] = {}
        first: dict[str, Tensor] = {}
        for number, (loss, metrics) in enumerate(zip(self._losses, [self.metrics, *self._further], strict=True)):
            own = {"loss": loss.compute(), **metrics.compute()}  # type: ignore[operator]
            if not loss.weight:  # no label at all
                del own["loss"]
            suffix = f"/dataloader_idx_{number}" if len(self._losses) > 1 else ""
            values |= {f"{name}{suffix}": value for name, value in own.items()}
            first = first or own
            loss.reset()  # type: ignore[operator]
            metrics.reset()
        self._losses, self._further = nn.ModuleList(), nn.ModuleList()
        if self._ranges and stage == "val" and not self.trainer.sanity_checking:
            warn_of_constant(torch.stack(self._ranges), first.get(self.shown[0]), self.trainer.callback_metrics)
        self._ranges = []
        for name, value in values.items():
            if name.startswith("loss") and not value.isfinite():
                rank_zero_warn(
                    f"{self.reported} in {stage} is {float(value)}, so its numbers mean nothing: the training has "
                    "diverged (lower the learning rate or a weight)."
                )
            # Metrics reduce over processes themselves: with unequally many samples Lightning's mean of means is off.
            self.log(f"{stage}/{name}", value, prog_bar=name in self.shown, sync_dist=True, add_dataloader_idx=False)
        return first


class RememberedLogits(dict[bytes, Tensor]):
    """A frozen teacher's logits on evaluation batches: computed once a run, then remembered (N x K numbers)."""

    def __init__(self) -> None:
        super().__init__()
        self._used: set[bytes] = set()

    def look(self, inputs: Any, compute: Callable[[], Tensor]) -> Tensor:
        """Return the logits on ``inputs``, a tensor or a mapping; with other parts than tensors computed each time."""
        parts = inputs if isinstance(inputs, Mapping) else {"": inputs}
        if not all(isinstance(part, Tensor) for part in parts.values()):
            return compute()
        key = b"".join(name.encode() + _fingerprint(part) for name, part in parts.items())
        self._used.add(key)
        if key not in self:
            self[key] = compute().cpu()
        return self[key].to(next(iter(parts.values())).device)

    def keep_used(self) -> None:
        """Drop the logits of inputs that did not come again (random crops, another data set)."""
        for key in self.keys() - self._used:
            del self[key]
        self._used.clear()


def _fingerprint(part: Tensor) -> bytes:
    """Return one exact number a sample, weighted by position: changed, flipped or reordered inputs have another."""
    rows = part.detach().reshape(len(part), -1).contiguous()
    words = rows.view(
        torch.int32 if rows.element_size() >= 4 else torch.int16 if rows.element_size() == 2 else torch.uint8
    )
    weights = 2 * torch.arange(words.shape[1], device=part.device) + 1
    weights *= 0x9E3779B97F4A7C15 - 2**64  # odd multiples: integer sums do not depend on their order
    sums = (words.long() * weights).sum(1)
    return str((part.dtype, tuple(part.shape))).encode() + sums.cpu().numpy().tobytes()


def warn_of_teacher(values: Mapping[str, Tensor], predictions: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Warn of a teacher that is near chance on the first validation samples, or right with its classes reordered.

    Args:
        values: the metrics of these samples.
        predictions: logits (N, K) and class indices (N,) of each batch.
    """
    if not predictions or "teacher_accuracy" not in values:
        return
    logits, labels = (torch.cat([*parts]) for parts in zip(*predictions, strict=True))
    samples, classes = logits.shape
    accuracy, chance = float(values["teacher_accuracy"]), 1 / classes
    if samples < 20:
        return
    told = f"The teacher is right on {accuracy:.1%} of the first {samples} validation samples"
    if accuracy <= min(2 * chance, (1 + chance) / 2):
        rank_zero_warn(
            f"{told}, near chance ({chance:.1%}): are its weights loaded, and do its classes have the same order?"
        )
    elif samples >= 5 * classes:
        counts = torch.zeros(classes, classes).index_put_((logits.argmax(1), labels), torch.ones(samples), True)
        reordered = float(counts[linear_sum_assignment(counts, maximize=True)].sum()) / samples
        if 1 - reordered < (1 - accuracy) / 2:
            rank_zero_warn(
                f"{told}, and on {reordered:.1%} with its classes in another order: do its classes have the same order?"
            )


def warn_of_constant(ranges: Tensor, accuracy: Tensor | None, logged: Mapping[str, Tensor]) -> None:
    """Warn of a network that gives one class for a whole validation set and learns its training batches all the same.

    Args:
        ranges: (batches, 4): least and largest predicted class, least and largest label of each batch.
        accuracy: that of the validation, from 0 to 1.
        logged: what the training logged, with the accuracy on the training batches.
    """
    low, high = ranges.amin(0), ranges.amax(0)
    trained = [float(x) for name, x in logged.items() if name.startswith("train/") and name.endswith("_accuracy")]
    better = max(trained, default=0.0) > float(0.0 if accuracy is None else accuracy) + 0.3
    if low[0] == high[1] and low[2] < high[3] and better:
        rank_zero_warn(
            f"In validation every prediction is class {int(low[0])}, while {max(trained):.0%} of the training batches "
            "are right: a layer acts otherwise in eval mode, most likely a BatchNorm whose running statistics are not "
            "those of the data (too few steps, a small momentum, or frozen ones)."
        )
