"""Offline distillation: one student, a frozen teacher or an ensemble of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor, nn
from torchmetrics import MeanMetric

from kdlab.data import ImageData
from kdlab.errors import InputError
from kdlab.knowledge import Knowledge
from kdlab.modules.base import DistillationModule, sgd
from kdlab.modules.cache_setup import use_cache
from kdlab.outputs import Batch, Outputs, logits_of, run
from kdlab.schedules import Schedule
from kdlab.teaching import Ensemble, Fast, FrozenTeacher, Lesson, TeacherCache


class Distiller(DistillationModule):
    """A student that learns from labels and from a frozen teacher.

    Without a teacher and without knowledge it is plain training, the baseline of every comparison.

    Checkpoints hold the student and the losses' own parts, never the teacher; loading is strict for all but the
    teacher.

    Args:
        student: the network to train.
        teacher: the network to learn from, or several; frozen, in eval mode. ``None`` is enough to predict, or to train
            plainly.
        knowledge: what to learn from the teacher, by name; the names are the log keys and the checkpoint keys.
        teacher_weights: what each of several teachers counts; all alike if not given.
        teacher_batchnorm: see :class:`~kdlab.teaching.FrozenTeacher`.
        ensemble: how several teachers act together; as the mean of their probabilities if not given.
        task: the loss on the labels, ``task(logits, labels)``; cross-entropy if not given.
        task_weight: factor of the task loss, at least 0; 0 distils without labels.
        task_schedule: a further factor of the task loss over epochs or steps.
        optimizer: makes the optimiser from the parameters; SGD (0.05, momentum 0.9, weight decay 5e-4) if not given.
        lr_scheduler: makes the learning-rate scheduler from the optimiser; a ``OneCycleLR`` needs no length.
        parameter_groups: optimiser options of single parts, by the beginning of their parameters' names:
            ``{"losses.hint": {"lr": 0.01}}``.
        teacher_fast: what may be done to make the teacher's forward cheaper; by default what changes its outputs by
            rounding alone. ``None`` for nothing.
        teacher_cache: keeps the teacher's outputs on disk, for later epochs and for other runs with the same teacher
            and data; only for losses that read its logits or embedding.
        channels_last: keep the student's convolution weights with the channels innermost, which most devices compute
            faster with.
        compile: ``torch.compile`` the student, in place: names and checkpoints stay.

    Raises:
        InputError: a negative weight or a name that cannot be a log key; before the first step, everything of
            :func:`~kdlab.modules.dry_run.rehearse`.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | list[nn.Module] | None = None,
        knowledge: dict[str, Knowledge] | None = None,
        teacher_weights: list[float] | None = None,
        teacher_batchnorm: Literal["frozen", "batch"] = "frozen",
        ensemble: Ensemble | None = None,
        task: nn.Module | None = None,
        task_weight: float = 1.0,
        task_schedule: Schedule | None = None,
        optimizer: OptimizerCallable = sgd,
        lr_scheduler: LRSchedulerCallable | None = None,
        parameter_groups: dict[str, dict[str, Any]] | None = None,
        teacher_fast: Fast | None = Fast(),  # noqa: B008  # frozen
        teacher_cache: TeacherCache | None = None,
        channels_last: bool = False,
        compile: bool = False,  # torch's word
    ) -> None:
        super().__init__(knowledge, task, task_weight, task_schedule, optimizer, lr_scheduler, parameter_groups)
        self.channels_last, self.compile_learners = channels_last, compile
        self.student = student
        teachers = [teacher] if isinstance(teacher, nn.Module) else teacher
        self.teacher = (
            FrozenTeacher(teachers, teacher_weights, teacher_batchnorm, ensemble, teacher_fast, teacher_cache)
            if teachers is not None
            else None
        )
        own = {id(each) for each in student.parameters()}
        if self.teacher is not None and any(id(each) in own for each in self.teacher.parameters()):
            raise InputError(
                "The student and the teacher share parameters, which cannot be both trained and frozen: copy them."
            )
        self._loss = MeanMetric(nan_strategy="disable")
        self._known: dict[bytes, Tensor] = {}
        self._asked: set[bytes] = set()
        self._part_from_cache: Callable[[], None] = _nothing

    @property
    def learners(self) -> dict[str, nn.Module]:
        """The student."""
        return {"student": self.student}

    @property
    def teaching(self) -> FrozenTeacher | None:  # type: ignore[override]
        """The frozen teacher."""
        return self.teacher

    def forward(self, inputs: Any) -> Any:
        """The student's own output."""
        return run(self.student, inputs)

    # Before the first step

    def setup(self, stage: str) -> None:
        """As the base; what is known of the teacher is forgotten, since it may be another one by now."""
        self._known.clear()
        self._asked.clear()
        if self.teacher is not None and stage != "fit":
            self.teacher.listen(self.teacher.layers)
        super().setup(stage)
        if self.teacher is not None and self.teacher.cache is not None and stage == "fit":
            self._part_from_cache()
            self._part_from_cache = use_cache(self)

    def on_fit_end(self) -> None:
        """As the base; data and cache are again as the user made them."""
        super().on_fit_end()
        self._part_from_cache()
        self._part_from_cache = _nothing

    def lessons(self, outputs: Mapping[str, Outputs], batch: Batch) -> list[Lesson]:
        """Who learns from whom on this batch."""
        if self.teacher is not None and self.teacher.cache is not None:
            data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
            # A user's own hook may change which samples a batch has after its transfer.
            kept = getattr(type(data), "on_after_batch_transfer", None) is ImageData.on_after_batch_transfer
            self.teacher.note(data.host_index if kept else None)
        return super().lessons(outputs, batch)

    # Evaluation: the student against its teacher

    def validation_step(self, raw: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Compare student and teacher on one batch."""
        self._compare("val", raw)

    def test_step(self, raw: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Compare student and teacher on one batch."""
        self._compare("test", raw)

    def predict_step(self, raw: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """The student's logits, (B, K); a batch may be inputs alone."""
        inputs = raw if isinstance(raw, Tensor) else Batch.of(raw).inputs
        return logits_of(self(inputs))

    def on_validation_epoch_end(self) -> None:
        """Report student and teacher."""
        self._report("val")

    def on_test_epoch_end(self) -> None:
        """Report student and teacher."""
        self._report("test")

    def _compare(self, stage: str, raw: Any) -> None:
        batch = Batch.of(raw)
        student = logits_of(self(batch.inputs))
        teacher = self._teacher_logits(batch) if self.teacher else None
        self._metrics.update(student, teacher, batch.target)
        # Once a sample: torchmetrics ignores weights where it does not look for nan, and looking waits for the device.
        self._loss.update(self.task(student, batch.target).expand(len(batch.target)))

    def _teacher_logits(self, batch: Batch) -> Tensor:
        """The teacher's logits on an evaluation batch: computed once a run, then remembered (N x K numbers)."""
        assert self.teacher is not None
        inputs = next(iter(batch.inputs.values())) if isinstance(batch.inputs, Mapping) else batch.inputs
        # One number a sample, weighted by position: changed, flipped or reordered inputs are another batch.
        flat = inputs.flatten(1).float()
        key = (flat * torch.linspace(1, 2, flat.shape[1], device=flat.device)).sum(1).cpu().numpy().tobytes()
        self._asked.add(key)
        if key not in self._known:
            self._known[key] = self.teacher.observe(batch.inputs).logits.cpu()
        return self._known[key].to(inputs.device)

    def _report(self, stage: str) -> None:
        # Not through self.log: between processes with unequally many samples Lightning's mean is off.
        values = {"loss": self._loss.compute(), **self._metrics.compute()}
        self._loss.reset()
        self._metrics.reset()
        # Inputs that did not come again (random crops, another data set) are forgotten.
        self._known = {key: self._known[key] for key in self._asked}
        self._asked.clear()
        if self.trainer.sanity_checking:
            self._warn_of_teacher(values)
        if not values["loss"].isfinite():
            rank_zero_warn(
                f"The student's loss in {stage} is {float(values['loss'])}, so its numbers mean nothing: the training "
                "has diverged (lower the learning rate or a weight)."
            )
        shown = {"student_accuracy", "teacher_accuracy"}
        for name, value in values.items():
            self.log(f"{stage}/{name}", value, prog_bar=name in shown, sync_dist=True)

    def _warn_of_teacher(self, values: dict[str, Tensor]) -> None:
        known = list(self._known.values())
        if not known or "teacher_accuracy" not in values:
            return
        seen, chance, accuracy = sum(map(len, known)), 1 / known[0].shape[-1], float(values["teacher_accuracy"])
        if seen >= 20 and accuracy < 2 * chance:
            rank_zero_warn(
                f"The teacher is right on {accuracy:.1%} of the first {seen} validation samples, near chance "
                f"({chance:.1%}): are its weights loaded, and do its classes have the same order?"
            )

    # Checkpoints: everything but the teacher

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the seed and leave the teacher out."""
        super().on_save_checkpoint(checkpoint)
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


def _nothing() -> None:
    pass
