"""Offline distillation: one student, a frozen teacher or an ensemble of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor, nn

from kdlab.knowledge import Knowledge
from kdlab.modules.base import DistillationModule, sgd
from kdlab.outputs import Batch, observe
from kdlab.schedules import Schedule
from kdlab.teaching import FrozenTeacher


class Distiller(DistillationModule):
    """A student that learns from labels and from a frozen teacher.

    Without a teacher and without knowledge it is plain training, the baseline of every comparison.

    Checkpoints hold the student and the losses' own parts, never the teacher; loading is strict for all but the teacher.

    Args:
        student: the network to train.
        teacher: the network to learn from, or several; frozen, in eval mode. ``None`` is enough to predict, or to train plainly.
        knowledge: what to learn from the teacher, by name; the names are the log keys and the checkpoint keys.
        teacher_weights: what each of several teachers counts; all alike if not given.
        teacher_batchnorm: see :class:`~kdlab.teaching.FrozenTeacher`.
        task: the loss on the labels, ``task(logits, labels)``; cross-entropy if not given.
        task_weight: factor of the task loss, at least 0; 0 distils without labels.
        task_schedule: a further factor of the task loss over epochs or steps.
        optimizer: makes the optimiser from the parameters; SGD (0.05, momentum 0.9, weight decay 5e-4) if not given.
        lr_scheduler: makes the learning-rate scheduler from the optimiser; a ``OneCycleLR`` needs no length.
        parameter_groups: optimiser options of single parts, by the beginning of their parameters' names:
            ``{"losses.hint": {"lr": 0.01}}``.

    Raises:
        InputError: a negative weight or a name that cannot be a log key; before the first step, everything of
            :func:`~kdlab.modules.rehearsal.rehearse`.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | list[nn.Module] | None = None,
        knowledge: dict[str, Knowledge] | None = None,
        teacher_weights: list[float] | None = None,
        teacher_batchnorm: Literal["frozen", "batch"] = "frozen",
        task: nn.Module | None = None,
        task_weight: float = 1.0,
        task_schedule: Schedule | None = None,
        optimizer: OptimizerCallable = sgd,
        lr_scheduler: LRSchedulerCallable | None = None,
        parameter_groups: dict[str, dict[str, Any]] | None = None,
    ) -> None:
        super().__init__(knowledge, task, task_weight, task_schedule, optimizer, lr_scheduler, parameter_groups)
        self.student = student
        teachers = [teacher] if isinstance(teacher, nn.Module) else teacher
        self.teacher = FrozenTeacher(teachers, teacher_weights, teacher_batchnorm) if teachers else None
        self._known: dict[tuple[str, int, int], tuple[Tensor, Tensor]] = {}

    @property
    def learners(self) -> dict[str, nn.Module]:
        """The student."""
        return {"student": self.student}

    @property
    def teaching(self) -> FrozenTeacher | None:
        """The frozen teacher."""
        return self.teacher

    def forward(self, inputs: Any) -> Any:
        """The student's own output."""
        return self.student(**inputs) if isinstance(inputs, Mapping) else self.student(inputs)

    # Evaluation: the student against its teacher

    def validation_step(self, raw: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Compare student and teacher on one batch."""
        self._compare("val", raw, batch_idx, dataloader_idx)

    def test_step(self, raw: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Compare student and teacher on one batch."""
        self._compare("test", raw, batch_idx, dataloader_idx)

    def predict_step(self, raw: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """The student's logits, (B, K); a batch may be inputs alone."""
        inputs = raw if isinstance(raw, Tensor) else Batch.of(raw).inputs
        return observe(self.student, inputs).logits

    def on_validation_epoch_end(self) -> None:
        """Report student and teacher."""
        self._report("val")

    def on_test_epoch_end(self) -> None:
        """Report student and teacher."""
        self._report("test")

    def _compare(self, stage: str, raw: Any, batch_idx: int, dataloader_idx: int) -> None:
        batch = Batch.of(raw)
        student = observe(self.student, batch.inputs).logits
        teacher = self._teacher_logits(stage, batch, batch_idx, dataloader_idx) if self.teacher else None
        self._metrics.update(student, teacher, batch.target)
        self.log(f"{stage}/loss", self.task(student, batch.target), batch_size=len(batch.target), sync_dist=True)

    def _teacher_logits(self, stage: str, batch: Batch, batch_idx: int, dataloader_idx: int) -> Tensor:
        """The teacher's logits on an evaluation batch: computed once, then remembered while the same inputs come again."""
        assert self.teacher is not None
        inputs = next(iter(batch.inputs.values())) if isinstance(batch.inputs, Mapping) else batch.inputs
        mark = inputs.flatten(1).double().mean(1).cpu()  # one number a sample: other inputs or another order are noticed
        key = (stage, dataloader_idx, batch_idx)
        known = self._known.get(key)
        if known is None or not torch.equal(known[0], mark):
            known = self._known[key] = mark, self.teacher.observe(batch.inputs).logits.cpu()
        return known[1].to(inputs.device)

    def _report(self, stage: str) -> None:
        values = self._metrics.compute()
        self._metrics.reset()
        if self.trainer.sanity_checking:
            self._warn_of_teacher(values)
        shown = {"student_accuracy", "teacher_accuracy"}
        for name, value in values.items():
            self.log(f"{stage}/{name}", value, prog_bar=name in shown)

    def _warn_of_teacher(self, values: dict[str, Tensor]) -> None:
        seen = sum(len(mark) for mark, _ in self._known.values())
        accuracy = float(values.get("teacher_accuracy", 1.0))
        chance = 1.0 / max(1, next((logits.shape[-1] for _, logits in self._known.values()), 1))
        if seen >= 20 and accuracy < 2 * chance:
            rank_zero_warn(
                f"The teacher is right on {accuracy:.1%} of {seen} validation samples, near chance ({chance:.1%}): "
                "are its weights loaded, and do its classes have the same order?"
            )

    # Checkpoints: everything but the teacher

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave the teacher out."""
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {key: value for key, value in state.items() if not key.startswith("teacher.")}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load strictly, except that the teacher keeps its own weights.

        Raises:
            RuntimeError: a key other than the teacher's is missing, unexpected or of another shape.
        """
        own = {key: value for key, value in state_dict.items() if not key.startswith("teacher.")}
        result = super().load_state_dict(own, strict=False, assign=assign)
        missing = [key for key in result.missing_keys if not key.startswith("teacher.")]
        if strict and (missing or result.unexpected_keys):
            raise RuntimeError(
                f"The checkpoint does not fit this {type(self).__name__}: missing {missing[:5] or 'nothing'}, "
                f"unexpected {result.unexpected_keys[:5] or 'nothing'}."
            )
        return type(result)(missing, result.unexpected_keys)

