"""Where, when and how much: a callback that owns one loss."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, final

import pytorch_lightning as pl
import torch
from pytorch_lightning import Callback
from torch import Tensor, nn

from kdlab.errors import InputError
from kdlab.losses.functional import full_precision, widens
from kdlab.outputs import Outputs
from kdlab.schedules import Progress, Schedule

NEEDS = (
    *("logits", "layers", "student_layers", "teacher_layers", "embedding", "teacher_embedding", "classes", "index"),
    *("views", "student_classifier", "teacher_classifier"),
)


@final
class Knowledge(Callback):
    r"""One piece of knowledge to pass on: a loss, the layers it reads, and how much it counts when.

    It adds :math:`weight \cdot schedule(t) \cdot loss(student, teacher, target)` to the loss of every lesson. While
    that factor is 0 the loss is not computed at all.

    Args:
        loss: any module with ``forward(student, teacher, target) -> scalar`` on two :class:`~kdlab.outputs.Outputs` and
            the labels. It is computed in float32 outside of autocast. A loss may declare ``needs`` (see
            :mod:`kdlab.losses`): what is missing is then reported before the first step. A loss, or a loss inside it,
            may also define ``setup(context)`` (see :class:`~kdlab.losses.context.Context`); ``precompute(batches)``,
            given the teacher's outputs and the labels of the whole training set, batch by batch, at the start of a fit;
            ``advance(epoch, step)``, called before every training step; ``after_backward()``, called after every
            backward pass.
        weight: factor of the loss, at least 0.
        schedule: a further factor as a function of epoch or step; ``None`` is 1.
        student_layers: names of the student's layers that the loss reads, in its order (see ``kdlab layers MODEL``).
        teacher_layers: the same for the teacher. One side given alone serves both.

    Raises:
        InputError: a negative or non-finite weight.
    """

    def __init__(
        self,
        loss: nn.Module,
        weight: float = 1.0,
        schedule: Schedule | None = None,
        student_layers: Sequence[str] = (),
        teacher_layers: Sequence[str] = (),
    ) -> None:
        self.weight = weight_at_least_zero(weight, "A knowledge's weight")
        self.loss = loss
        self.copies: dict[tuple[str, str], nn.Module] = {}
        self.schedule = schedule
        said = getattr(loss, "needs", ())
        if isinstance(said, str) or not set(said) <= set(NEEDS):
            words = ", ".join(map(repr, NEEDS))
            raise InputError(f"{type(loss).__name__}.needs is a tuple out of {words}, not {said!r}.")
        both = not {"student_layers", "teacher_layers"} & set(self.needs)  # else the loss reads one side alone
        self.student_layers = tuple(student_layers or (teacher_layers if both else ()))
        self.teacher_layers = tuple(teacher_layers or (student_layers if both else ()))

    def spread(self, pairs: Sequence[tuple[str, str]]) -> nn.Module:
        """Have the loss once for each (learner, source), so that what it learns or keeps is of these two alone.

        Returns:
            What is to be registered: the loss itself for one pair, else all of them by ``LEARNER_from_SOURCE``.
        """
        self.copies = {pair: copy.deepcopy(self.loss) if number else self.loss for number, pair in enumerate(pairs)}
        if len(pairs) < 2:
            return self.loss
        return nn.ModuleDict({f"{learner}_from_{source}": each for (learner, source), each in self.copies.items()})

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Find what is to be called at every step."""
        self._advances = tuple(self.parts("advance"))
        self._after_backwards = tuple(self.parts("after_backward"))

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        """Tell the loss how far the training is."""
        for advance in self._advances:
            advance(trainer.current_epoch, trainer.global_step)

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Let the loss remember what it may change only now: autograd needs its memory until here."""
        for after_backward in self._after_backwards:
            after_backward()

    def parts(self, method: str, pair: tuple[str, str] | None = None) -> Iterator[Callable[..., None]]:
        """The method of that name of the loss and every loss inside it that has one; of all its copies, or of one."""
        for loss in [self.copies.get(pair, self.loss)] if pair else self.copies.values() or [self.loss]:
            yield from (getattr(each, method) for each in loss.modules() if callable(getattr(each, method, None)))

    def weight_at(self, progress: Progress) -> float:
        """The factor of the loss at ``progress``."""
        return self.weight if self.schedule is None else self.weight * self.schedule(progress)

    def compare(
        self, student: Outputs, teacher: Outputs, target: Tensor, pair: tuple[str, str] | None = None
    ) -> Tensor:
        """The loss, unweighted: a scalar. Teachers that count differently for each sample are compared one by one."""
        loss = self.copies.get(pair, self.loss) if pair else self.loss
        ours, theirs = student.only(self.student_layers), teacher.only(self.teacher_layers)
        if teacher.members and self.reads_logits:
            return _member_by_member(loss, ours, theirs, target)
        if widens(loss):
            value: Tensor = loss(ours, theirs, target)
            return value
        return _in_full_precision(loss, ours, theirs, target)

    @property
    def needs(self) -> tuple[str, ...]:
        """What the loss says it needs."""
        return tuple(getattr(self.loss, "needs", ()))

    @property
    def views(self) -> tuple[str, ...]:
        """The further views of the batch that the loss reads."""
        return tuple(getattr(self.loss, "views", ()))

    @property
    def reads_logits(self) -> bool:
        """Whether both sides need the same classes: as the loss says, else where it is given no layers to read."""
        return "logits" in self.needs or not (self.needs or self.student_layers)

    @property
    def reads_only_layers(self) -> bool:
        """Whether the loss is known to read nothing of the teacher but layers."""
        own = {"layers", "student_layers", "teacher_layers", "student_classifier", "classes", "index"}
        return bool(self.needs) and set(self.needs) <= own

    @property
    def reads_embedding(self) -> bool:
        """Whether the loss may read the teacher's embedding."""
        return not self.needs or bool({"embedding", "teacher_embedding"} & set(self.needs))

    @property
    def reads_student(self) -> bool:
        """Whether the loss teaches the student, or prepares something of its own from the teacher alone."""
        return not self.needs or bool({"logits", "layers", "student_layers", "embedding"} & set(self.needs))

    def missing(self, student: Outputs, target: Tensor) -> str | None:
        """What the loss needs and does not get here, as the end of a sentence; ``None`` if all is there."""
        layers = self.student_layers
        reasons = {
            "layers": not layers and "layers to read: set student_layers (and teacher_layers)",
            "student_layers": not layers and "layers of the student to read: set student_layers",
            "teacher_layers": not self.teacher_layers and "layers of the teacher to read: set teacher_layers",
            "embedding": (student.embedding is None and len(layers) != 1)
            and "an embedding, but the network has no linear classifier: set student_layers to one layer",
            "classes": (target.is_floating_point() or target.dim() != 1) and "class indices (B,) as labels",
            "index": student.index is None and "the sample index: let the loader yield (inputs, labels, index)",
        }
        return next((reason for need in self.needs if (reason := reasons.get(need))), None) or None

    def missing_of(self, teacher: Outputs) -> str | None:
        """What the loss needs and this teacher does not give, as the end of a sentence; ``None`` if all is there."""
        if set(self.teacher_layers) - set(teacher.names):
            return f"layers of the teacher ({', '.join(self.teacher_layers)})"
        if {"embedding", "teacher_embedding"} & set(self.needs) and teacher.embedding is None and not teacher.layers:
            return "the teacher's embedding"
        if set(self.views) - set(teacher.views):
            return f"the teacher on further views ({', '.join(self.views)})"
        return None


@full_precision
def _in_full_precision(loss: nn.Module, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
    value: Tensor = loss(student, teacher, target)
    return value


@full_precision
def _member_by_member(loss: nn.Module, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
    r"""The sum over teachers m of the mean over samples b of :math:`w_{mb} loss_b(student, m, target)`."""
    each = getattr(loss, "per_sample", None)
    if each is None:
        raise InputError(
            f"{type(loss).__name__} gives one number a batch, but these teachers count differently for each sample: "
            "use a loss that has per_sample(), such as SoftTargets, or another ensemble."
        )
    return torch.stack([(weight * each(student, seen, target)).mean() for seen, weight in teacher.members]).sum()


def weight_at_least_zero(weight: float, what: str) -> float:
    """``weight`` as a float, refused where it is negative, infinite or not a number."""
    if not 0 <= weight < math.inf:
        raise InputError(f"{what} must be a finite number of at least 0, not {weight}.")
    return float(weight)
