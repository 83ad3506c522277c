"""Offline distillation: one student, a frozen teacher or an ensemble of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor, nn

from kdlab.data.preprocessing import Preprocessing
from kdlab.errors import InputError
from kdlab.knowledge import Knowledge
from kdlab.metrics import StudentVersusTeacher
from kdlab.modules.base import DistillationModule, sgd
from kdlab.modules.cache_setup import use_cache
from kdlab.modules.evaluation import RememberedLogits, warn_of_teacher
from kdlab.modules.first_batch import first_batch
from kdlab.outputs import Batch, logits_of, run
from kdlab.outputs.network_layers import declares_no_classifier
from kdlab.outputs.task_format import TaskFormat, task_format
from kdlab.schedules import Schedule
from kdlab.teaching import Ensemble, Fast, FrozenTeacher, Plan, TeacherCache
from kdlab.teaching.plan import share_parameters


class Distiller(DistillationModule):
    """A student that learns from labels and from a frozen teacher.

    Without a teacher and without knowledge it is plain training, the baseline of every comparison.

    Checkpoints hold the student and the losses' own parts, never the teacher, which is no part of the module's tree
    (see :class:`~kdlab.members.Frozen`).

    A batch is ``(inputs, labels)``, ``(inputs, labels, index)`` with the position of each sample in its data set, or a
    mapping with ``"labels"``, perhaps ``"index"``, and keyword arguments: each network gets those that its ``forward``
    names, or all if it takes ``**kwargs``. ``attention_mask`` (B, L) says which tokens count. What is no tensor (texts,
    a number) is passed on as it is.

    A network is any module. Its logits (B, K) are the tensor that it returns, the first element of a tuple or list, or
    ``logits`` or ``out`` of a mapping, a dataclass or a model output of transformers. Its layers are tapped by the
    names of its submodules, or of what it returns (``hidden_states.6``); its embedding is what enters the last linear
    layer.

    >>> import torch
    >>> network = nn.Linear(4, 10)  # forward(self, input)
    >>> Distiller(network)({"input": torch.rand(2, 4), "texts": ["a", "b"]}).shape  # inputs of a mapping's batch
    torch.Size([2, 10])

    Args:
        student: the network to train.
        teacher: the network to learn from, or several: as an ensemble (a list), or each on its own (a mapping by name),
            see :class:`~kdlab.teaching.FrozenTeacher`. Frozen, in eval mode. A :class:`~kdlab.members.Stored` is a file
            of its outputs, an :class:`~kdlab.teaching.OnPolicy` a teacher of generated texts. ``None`` is enough to
            predict, or to train plainly.
        knowledge: what to learn from the teacher, by name; the names are log keys and checkpoint keys. ``None`` takes
            out one of a config before.
        teacher_weights: how much each of several teachers counts; all alike if not given.
        teacher_batchnorm: see :class:`~kdlab.teaching.FrozenTeacher`.
        ensemble: how several teachers act together; as the mean of their probabilities if not given.
        task: the loss on the labels, ``task(logits, labels)``; cross-entropy if not given.
        task_weight: factor of the task loss, at least 0; 0 distills without labels.
        task_schedule: a further factor of the task loss over epochs or steps.
        optimizer: makes the optimizer from the parameters; SGD (0.05, momentum 0.9, weight decay 5e-4) if not given.
        lr_scheduler: makes the learning-rate scheduler from the optimizer; a ``OneCycleLR`` needs no length.
        parameter_groups: optimizer options of single parts, by the beginning of their parameters' names:
            ``{"losses.hint": {"lr": 0.01}}``.
        teacher_fast: what may be done to make the teacher's forward cheaper; by default what changes its outputs by
            rounding alone. ``None`` for nothing; ``timed`` for what is fastest.
        teacher_cache: keeps the teacher's outputs on disk, for later epochs and for other runs with the same teacher
            and data; only for losses that read its logits or embedding.
        teacher_preprocessing: the mean, standard deviation and size that the teachers were trained with, where they are
            not the data's; ``"own"`` for what timm says of each. :class:`~kdlab.members.Frozen` takes one for itself.
        channels_last: keep the student's convolution weights with the channels innermost, which most devices compute
            faster.
        compile: ``torch.compile`` the student, in place: names and checkpoints stay.
        skip_nonfinite: how many steps with a non-finite loss or gradient may be skipped; the next one stops the
            training, as the first one does with 0. The count is logged as ``skipped_steps``.
        watch_gradients: log every ``log_every_n_steps`` the norm of each weighted term's gradient
            (``grad/NAME_norm``) and its cosine to the task's (``grad/NAME_cosine``).

    Raises:
        InputError: a negative weight or a name that cannot be a log key; before the first step, everything of
            :func:`~kdlab.modules.dry_run.dry_run`.
    """

    metrics: StudentVersusTeacher
    shown: ClassVar[tuple[str, ...]] = ("student_accuracy", "teacher_accuracy")
    reported = "The student's loss"

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | list[nn.Module] | dict[str, nn.Module] | None = None,
        knowledge: Mapping[str, Knowledge | None] | None = None,
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
        teacher_preprocessing: Preprocessing | Literal["own"] | None = None,
        channels_last: bool = False,
        compile: bool = False,  # torch's word
        skip_nonfinite: int = 0,
        watch_gradients: bool = False,
    ) -> None:
        teachers: Sequence[nn.Module] | Mapping[str, nn.Module] | None
        teachers = [teacher] if isinstance(teacher, nn.Module) else teacher
        frozen = None
        if isinstance(teacher, FrozenTeacher):
            frozen, teachers = teacher, teacher.networks
            told = (teacher_weights, ensemble, teacher_cache, teacher_preprocessing)
            is_set = any(option is not None for option in told)
            if is_set or teacher_batchnorm != "frozen" or teacher_fast != Fast():
                name = type(teacher).__name__
                raise InputError(f"{name} says itself how its teacher acts: drop the options teacher_* and ensemble.")
        elif teachers is not None:
            acting = (teacher_batchnorm, ensemble, teacher_fast, teacher_cache, teacher_preprocessing)
            frozen = FrozenTeacher(teachers, teacher_weights, *acting)
        options = (task, task_weight, task_schedule, optimizer, lr_scheduler, parameter_groups)
        further = (channels_last, compile, skip_nonfinite, watch_gradients)
        super().__init__({"student": student}, frozen, knowledge, *options, *further)
        self.student = student
        self.teacher = frozen
        if any(share_parameters(student, network) for network in (frozen.networks if frozen else ())):
            raise InputError(
                "The student and the teacher share parameters, which cannot be both trained and frozen: copy them."
            )
        self.metrics = StudentVersusTeacher()
        self._remembered = RememberedLogits()
        self._predictions: list[tuple[Tensor, Tensor]] = []
        self._restore: tuple[Plan, Callable[[], None]] | None = None

    @property
    def teaching(self) -> FrozenTeacher | None:  # type: ignore[override]
        """Return the frozen teacher."""
        return self.teacher

    def forward(self, inputs: Any) -> Any:
        """Return the student's own output."""
        return run(self.student, inputs)

    # Before the first step

    def prepare(self, stage: str) -> None:
        """Prepare the step without cache; remembered outputs are dropped, since the teacher may be another."""
        self._remembered.clear()
        self._close_cache()
        super().prepare(stage)

    def open_cache(self) -> None:
        """Open the teacher cache, now that the teachers are where they will run, and how is chosen."""
        if self.teacher is not None and (cache := self.teacher.cache) is not None:
            plan, data = self.plan, first_batch(self)
            try:
                cached, undo = use_cache(self, plan, self.knowledge, self.teacher.frozen, cache, data)
            except InputError as error:
                if not cache.shared:
                    raise
                rank_zero_info(f"The teacher runs in every step: {error}")
            else:
                self.plan, self._restore = cached, (plan, undo)

    def on_fit_end(self) -> None:
        """End the fit; data and cache are again as the user made them."""
        super().on_fit_end()
        self._close_cache()

    def _close_cache(self) -> None:
        if self._restore is not None:
            self.plan, undo = self._restore
            self._restore = None
            undo()

    # Evaluation: the student against its teacher

    def scored(self, batch: Batch) -> Batch:
        """Return a batch without labels where the student has no classifier to score."""
        ignored = getattr(self.task, "ignore_index", None)
        if ignored is None or batch.target.is_floating_point() or not declares_no_classifier(self.student):
            return batch
        return batch._replace(target=torch.full_like(batch.target, ignored))

    def evaluate_batch(self, batch: Batch, metrics: Any) -> tuple[Tensor, TaskFormat]:
        """Compare student and teacher on one batch; return the student's logits."""
        student = logits_of(self(batch.inputs))
        teacher = (
            self._remembered.look(batch.inputs, lambda: self._logits_of_teacher(batch)) if self._evaluates else None
        )
        form = task_format(self.task, student, batch.target, batch.mask)
        metrics.update(student, teacher, batch.target, form, batch.mask)
        if self.trainer.sanity_checking and teacher is not None and form.kind == "classes":
            rows, labels = form.rows(teacher), batch.target.flatten()
            labelled = labels != form.ignore_index
            self._predictions.append((rows[labelled].cpu(), labels[labelled].cpu()))
        return student, form

    def teacher_logits(self, batch: Batch) -> Tensor | None:
        """Return the teacher's logits on a batch, of several teachers those of their ensemble; ``None`` without one."""
        return self._logits_of_teacher(batch) if self._evaluates else None

    @property
    def _evaluates(self) -> bool:
        return self.teacher is not None and self.teacher.in_evaluation

    def _logits_of_teacher(self, batch: Batch) -> Tensor:
        return self.observe(batch._replace(progress=None), self.plan.frozen)["teacher"].logits

    def _report(self, stage: str) -> dict[str, Tensor]:
        values = super()._report(stage)
        if self.trainer.sanity_checking:
            warn_of_teacher(values, self._predictions)
        self._predictions.clear()
        self._remembered.keep_used()
        return values
