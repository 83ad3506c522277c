"""Where, when and how much: a callback that owns one loss."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial, reduce
from operator import add
from typing import Any, final

import pytorch_lightning as pl
from pytorch_lightning import Callback
from torch import Tensor, nn

from kdlab.errors import InputError, nearest
from kdlab.losses.functional import widens
from kdlab.losses.response.logits import kinds_of, temperatures_of
from kdlab.losses.sample_weights import dropped_mean, each_sample, in_full_precision, sample_by_sample
from kdlab.members.member import Learner, NetworkMember
from kdlab.outputs import Batch, Outputs
from kdlab.outputs.containers import gathered
from kdlab.outputs.task_format import TaskFormat
from kdlab.schedules import Progress, Schedule
from kdlab.teaching.plan import Edge, Plan, source_of, weight_at_least_zero

NEEDS = (
    *("logits", "layers", "student_layers", "teacher_layers", "embedding", "teacher_embedding", "classes", "index"),
    *("views", "student_classifier", "teacher_classifier"),
)
LAYERS_ALONE = {"layers", "student_layers", "teacher_layers", "student_classifier", "classes", "index"}
RENAMED = {"set_up": "setup(context)", "survey": "precompute(batches)"}
"""Hooks of losses that have another name now."""

Pair = tuple[str, str]
"""Names of student and teacher, without variants."""


@final
class Knowledge(Callback):
    r"""One piece of knowledge to transfer: a loss, the layers it reads, and how much it counts when.

    It adds :math:`weight \cdot schedule(t) \cdot loss(student, teacher, target)` to the loss for every edge of the plan
    that it uses. While that factor is 0 the loss is not computed at all.

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
            The calls of a layer that runs several times in a forward are ``NAME@0``, ``NAME@1``, and so on.
        teacher_layers: the same for the teacher. One side given alone serves both.
        teachers: names of the teachers whose edges it uses; all edges if not given.
        gather: compare the samples of all processes, for a loss that couples the samples of a batch (RKD, DIST, ...):
            value and gradient are then those of one process. By default each process compares its own samples.
        dropping: with several teachers by name, the chance that a teacher is left out for a sample (UNIC: 0.5); the one
            with the largest loss never is. The loss is then the mean over what is left, see
            ``kdlab.losses.sample_weights.dropped_mean``; weights of edges do not count.

    Raises:
        InputError: a negative or non-finite weight, unknown ``needs``, or a hook under its old name.

    Attributes:
        needs: what the loss declares that it needs.
        views: further views of the batch that the loss reads.
        reads_logits: whether both sides need the same classes: as the loss declares, else if it has no layers to read.
        reads_sequences: whether the loss selects the positions that count itself.
        reads_only_layers: whether the loss is known to read nothing of the teacher but layers.
        reads_embedding: whether the loss may read the teacher's embedding.
        reads_student: whether the loss reads the student, and is no preparation from the teacher alone.
    """

    def __init__(
        self,
        loss: nn.Module,
        weight: float = 1.0,
        schedule: Schedule | None = None,
        student_layers: Sequence[str] = (),
        teacher_layers: Sequence[str] = (),
        teachers: Sequence[str] = (),
        gather: bool = False,
        dropping: float = 0.0,
    ) -> None:
        self.weight = weight_at_least_zero(weight, "A knowledge's weight")
        self.loss = loss
        self._wide = widens(loss)
        self.copies: dict[Pair, nn.Module] = {}
        self.edges: tuple[tuple[Edge, nn.Module], ...] = ()
        self.is_connected = False
        self.form: TaskFormat | None = None
        self.schedule, self.gather, self.dropping = schedule, gather, dropping
        if not 0 <= dropping <= 1 or (dropping and not hasattr(loss, "per_sample")):
            text = "is a chance from 0 to 1, and needs a loss that has per_sample(), such as CosineSmoothL1"
            raise InputError(f"dropping {text}; it is {dropping} with {type(loss).__name__}.")
        needs = getattr(loss, "needs", ())
        if isinstance(needs, str) or not set(needs) <= set(NEEDS):
            words = ", ".join(map(repr, NEEDS))
            raise InputError(f"{type(loss).__name__}.needs is a tuple out of {words}, not {needs!r}.")
        for part in loss.modules():
            if old := next((name for name in RENAMED if callable(getattr(part, name, None))), None):
                raise InputError(f"{type(part).__name__}.{old}() is now {RENAMED[old]}: rename it.")
        both = not {"student_layers", "teacher_layers"} & set(needs)  # else the loss reads one side alone
        self.student_layers = tuple(student_layers or (teacher_layers if both else ()))
        self.teacher_layers = tuple(teacher_layers or (student_layers if both else ()))
        self.teachers = tuple(teachers)
        self.needs, self.views = tuple(needs), tuple(getattr(loss, "views", ()))
        self.reads_logits = "logits" in needs or not (needs or self.student_layers)
        self.reads_sequences: bool = getattr(loss, "reads_sequences", False)
        self.reads_only_layers = bool(needs) and set(needs) <= LAYERS_ALONE
        self.reads_embedding = not needs or bool({"embedding", "teacher_embedding"} & set(needs))
        self.reads_student = not needs or bool({"logits", "layers", "student_layers", "embedding"} & set(needs))

    def use_form(self, form: TaskFormat, student: Outputs, may_ignore: bool) -> None:
        """Let the loss compare positions that count alone, where there are others or several a sample.

        Raises:
            InputError: the loss is not for this kind of target, or needs one prediction a sample.
        """
        name, needs = type(self.loss).__name__, set(self.needs)
        reads_positions = self.reads_logits or "classes" in needs or not needs
        if form.kind not in kinds_of(self.loss):
            raise InputError(
                f"{name} is for {' and '.join(kinds_of(self.loss))} targets, and the task has {form.kind} targets; "
                "kdlab.losses.SoftTargets is for all but 'other' (which a task loss can change by declaring "
                "target_kind), and a loss of your own declares kinds."
            )
        self.form = None
        if self.reads_sequences:
            return
        if getattr(self.loss, "positions", "") == "attended":
            form = form._replace(ignore_index=None)
        if student.logits.dim() != 2 and reads_positions and form.kind != "other":
            if rest := sorted(needs - {"logits", "classes"}):
                raise InputError(
                    f"{name} needs {', '.join(rest)} of each sample, which have no order in common with logits "
                    f"{tuple(student.logits.shape)} of several positions a sample."
                )
            self.form = form
        elif may_ignore and "classes" in needs:
            self.form = form

    def connect(self, plan: Plan, name: str) -> nn.Module:
        """Select the edges of a plan, and copy the loss for each pair of student and teacher.

        ``name`` is that of the knowledge, for messages. Return what is to be registered: the loss itself for one pair,
        else all copies by ``STUDENT_from_TEACHER``.
        """
        sources = dict.fromkeys(source_of(edge.teacher) for edge in plan.edges)
        if unknown := [name for name in self.teachers if name not in sources]:
            raise InputError(
                f"Knowledge {name!r}: no edge has the teacher {unknown[0]!r}; the nearest are "
                f"{nearest(unknown[0], sources)}.",
                key=f"{name}.teachers",
            )
        edges = [edge for edge in plan.edges if not self.teachers or source_of(edge.teacher) in self.teachers]
        self.is_connected = bool(edges)
        edges = [edge for edge in edges if callable(edge.weight) or edge.weight]  # a cut-off edge never counts
        pairs = dict.fromkeys(map(pair_of, edges))
        self.copies = {pair: copy.deepcopy(self.loss) if number else self.loss for number, pair in enumerate(pairs)}
        self.edges = tuple((edge, self.copies[pair_of(edge)]) for edge in edges)
        if len(self.copies) < 2:
            return self.loss
        return nn.ModuleDict({f"{student}_from_{teacher}": loss for (student, teacher), loss in self.copies.items()})

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Collect the hooks to call at every step."""
        self._advances = tuple(self.parts("advance"))
        self._after_backwards = tuple(self.parts("after_backward"))

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        """Report the progress of the training to the loss."""
        for advance in self._advances:
            advance(trainer.current_epoch, trainer.global_step)

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Let the loss update its memory, which autograd needs until here."""
        for after_backward in self._after_backwards:
            after_backward()

    def parts(self, method: str, pair: Pair | None = None) -> Iterator[Callable[..., None]]:
        """Iterate over the methods of that name of the loss and the losses inside it; of all its copies, or of one."""
        for loss in [self.copies.get(pair, self.loss)] if pair else self.copies.values() or [self.loss]:
            yield from (getattr(part, method) for part in loss.modules() if callable(getattr(part, method, None)))

    @property
    def follows_steps(self) -> bool:
        """Return whether the Trainer must call it during training: for its loss, or for hooks of a subclass."""
        return type(self) is not Knowledge or any(self.parts("advance")) or any(self.parts("after_backward"))

    def weight_at(self, progress: Progress) -> float:
        """Return the factor of the loss at ``progress``."""
        return self.weight if self.schedule is None else self.weight * self.schedule(progress)

    def total(
        self, edges: Sequence[tuple[Edge, nn.Module]], seen: Mapping[str, Outputs], batch: Batch
    ) -> Tensor | None:
        """Return the loss over edges, a scalar; ``None`` where none of them has a teacher yet."""
        if self.dropping and len(edges) > 1:
            sides = [(loss, *self._sides(edge, seen, batch)) for edge, loss in edges]
            return dropped_mean([each_sample(*side) for side in sides], self.dropping)
        values = [value for edge, loss in edges if (value := self.compare(edge, loss, seen, batch)) is not None]
        return reduce(add, values) if values else None

    def _sides(self, edge: Edge, seen: Mapping[str, Outputs], batch: Batch) -> tuple[Outputs, Outputs, Tensor]:
        """Return student, teacher and target of an edge as a loss reads them."""
        student, teacher = seen[edge.student], seen[edge.teacher]
        if teacher.index is None and student.index is not None:
            teacher = replace(teacher, index=student.index)
        teacher = teacher.only(self.teacher_layers)
        return student.only(self.student_layers), teacher.detach() if edge.detach else teacher, student.targets(batch)

    def compare(self, edge: Edge, loss: nn.Module, seen: Mapping[str, Outputs], batch: Batch) -> Tensor | None:
        """Return the loss of one edge with the edge's weight, without the knowledge's own: a scalar.

        It is ``None`` where the edge has no teacher yet, or weighs 0. With weights for each sample, of the edge or of
        an ensemble's teachers, the loss is taken sample by sample. A teacher without sample index gets the student's.
        """
        teacher: Outputs | None = seen.get(edge.teacher)
        weight = edge.weight(seen, batch) if callable(edge.weight) else edge.weight
        if teacher is None or (not isinstance(weight, Tensor) and weight == 0):
            return None
        student, teacher, target = self._sides(edge, seen, batch)
        if self.gather:
            student, teacher, target, weight = gathered((student, teacher, target, weight))
        members = teacher.members if self.reads_logits else ()
        if isinstance(weight, Tensor):
            members = tuple((outputs, share * weight) for outputs, share in members or ((teacher, 1.0),))
            weight = 1.0
        teacher = replace(teacher, members=members) if members else teacher
        if self.form is not None:
            student, teacher, target = self.form.select(student, teacher, target)
            if not len(student.logits):
                return student.logits.sum() * 0  # no position counts
        if members:
            value = sample_by_sample(loss, student, teacher, target)
        else:
            forward = loss if self._wide else partial(in_full_precision, loss)
            value = forward(student, teacher, target)
        return value if weight == 1 else value * weight

    def missing(self, student: Outputs, target: Tensor) -> str | None:
        """Return what the loss needs and does not get here, as the end of a sentence; ``None`` if all is there."""
        layers = self.student_layers
        reasons = {
            "layers": not layers and "layers to read: set student_layers (and teacher_layers)",
            "student_layers": not layers and "layers of the student to read: set student_layers",
            "teacher_layers": not self.teacher_layers and "layers of the teacher to read: set teacher_layers",
            "embedding": (student.embedding is None and len(layers) != 1)
            and "an embedding, but no linear classifier runs once in the network: set student_layers to one layer",
            "classes": (target.is_floating_point() or target.dim() != 1) and "class indices (B,) as labels",
            "index": student.index is None and "the sample index: let the loader yield (inputs, labels, index)",
        }
        return next((reason for need in self.needs if (reason := reasons.get(need))), None) or None

    def missing_of(self, teacher: Outputs) -> str | None:
        """Return what the loss needs and this teacher does not give, as the end of a sentence, or ``None``."""
        if set(self.teacher_layers) - set(teacher.names):
            return f"layers of the teacher ({', '.join(self.teacher_layers)})"
        if {"embedding", "teacher_embedding"} & set(self.needs) and teacher.embedding is None and not teacher.layers:
            return "the teacher's embedding"
        if set(self.views) - set(teacher.views):
            return f"the teacher on further views ({', '.join(self.views)})"
        return None


def pair_of(edge: Edge) -> Pair:
    """Return the names of an edge's student and teacher, without variants."""
    return source_of(edge.student), source_of(edge.teacher)


def set_taps(plan: Plan, knowledge: Mapping[str, Knowledge], task: nn.Module | None = None) -> None:
    """Let every member tap the layers, and run the views, that the knowledge reads on its edges.

    Networks give factored logits where a loss, or the task, compares them in chunks.
    """
    losses = [task, *(loss for each in knowledge.values() for _, loss in each.edges)]
    chunked = any(getattr(part, "chunk_size", None) for loss in losses if loss is not None for part in loss.modules())
    temperatures = temperatures_of(each.loss for each in knowledge.values() if each.reads_logits)
    reading = [(each, edge) for each in knowledge.values() for edge, _ in each.edges]
    for member in plan.members.values():
        layers, views, only_layers = list[str](), list[str](), True
        for own, edge in reading:
            if plan.owners[edge.student] is member:
                layers += own.student_layers
                views += own.views
            if plan.owners[edge.teacher] is member:
                layers += own.teacher_layers
                views += own.views
                only_layers &= own.reads_only_layers
        layers += plan.student_taps if isinstance(member, Learner) else ()
        member.set_taps(layers, list(dict.fromkeys(views)), bool(layers) and only_layers)
        if isinstance(member, NetworkMember):
            member.factors, member.temperatures = chunked, temperatures
