"""The questions that every way of teaching answers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn

from kdlab.data import View
from kdlab.errors import InputError
from kdlab.outputs import Batch, Observer, Outputs


class Lesson(NamedTuple):
    """One comparison to be made in a step.

    Attributes:
        learner: who learns, by name.
        teacher: what it is held against.
        weight: how much the comparison counts.
        source: who teaches, by name. A loss with parts of its own has them once for each (learner, source).
        student: what is compared, where it is not what the learner gives on the batch.
        target: the labels of ``student``, where they are not those of the batch.
    """

    learner: str
    teacher: Outputs
    weight: float = 1.0
    source: str = "teacher"
    student: Outputs | None = None
    target: Tensor | None = None


class Answer(NamedTuple):
    """Logits of a learner that the task loss holds against labels, and how much that counts."""

    learner: str
    logits: Tensor
    target: Tensor
    weight: float = 1.0


def all_alike(outputs: Mapping[str, Outputs], batch: Batch) -> list[Answer]:
    """The labels of the batch count for every learner's logits, alike."""
    return [Answer(name, each.logits, batch.target) for name, each in outputs.items()]


class Teaching(nn.Module):
    """Who teaches whom.

    A subclass answers :meth:`lessons`, and :meth:`pairs` beside it. It overrides what else differs: :meth:`answers`
    where the labels count otherwise, :meth:`gather` where it makes an answer out of several, :meth:`asks` and
    :meth:`views` where something else than the batch is seen, :meth:`listen` where it has networks of its own, and
    :meth:`remember` or :meth:`after_step` where it keeps something for later steps. What it keeps belongs into buffers:
    they are saved in checkpoints.
    """

    fixed: ClassVar[bool] = False
    """Whether the teacher is the same during the whole training, so that losses may look at it beforehand."""

    is_rehearsing = False

    # Before the training

    def adopt(self, networks: Mapping[str, nn.Module], learners: Sequence[str]) -> None:
        """Be told, once, of the networks to be trained, and of all learners by name: a network's further heads are
        learners too, ``NETWORK_HEAD``. Refuse here what cannot be taught.
        """

    def pairs(self, learners: Sequence[str]) -> list[tuple[str, str]]:
        """Every (learner, source) that :meth:`lessons` will ever name."""
        return [(learner, "teacher") for learner in learners]

    def asks(self, learners: Sequence[str]) -> dict[str, View]:
        """The further views of a training batch that it needs, by name, and what makes them."""
        return {}

    @property
    def sees(self) -> tuple[str, ...]:
        """Those views that every network runs beside the batch, in the same forward."""
        return ()

    @property
    def reads(self) -> tuple[str, ...]:
        """The learners' layers that it reads itself."""
        return ()

    @property
    def turns(self) -> tuple[tuple[str, ...], ...]:
        """Who is updated after whom in a step, each time with new forwards; empty if all are at once."""
        return ()

    def prepare(self, outputs: Mapping[str, Outputs], samples: int | None) -> None:
        """Be shown, before the first step, what the learners give on a small batch, and the training set's size."""

    @contextmanager
    def rehearsing(self) -> Iterator[None]:
        """Run networks as they are, for a dry batch that may be on another device than the training; every lesson that
        will ever be given is given.
        """
        self.is_rehearsing = True
        try:
            yield
        finally:
            self.is_rehearsing = False

    @property
    def observers(self) -> Sequence[Observer]:
        """What runs this teaching's own networks, if it has any."""
        return ()

    def network(self, source: str) -> nn.Module | None:
        """The own network that is called ``source`` in lessons, if there is one."""
        return self.observers[0].network if len(self.observers) == 1 else None

    def listen(self, layers: Sequence[str], only_layers: bool = False) -> None:
        """Be told, before the first step, which layers the knowledge taps on the teacher's side, and whether it reads
        nothing else (no logits, no embedding) in a lesson.
        """

    def precompute(self, batches: Iterable[Batch]) -> Iterator[tuple[Outputs, Tensor]]:
        """What the teacher gives on each of ``batches``, with its labels, before any training."""
        raise InputError(f"{type(self).__name__} has no fixed teacher to look at the training set with.")

    # In a step, in this order

    def advance(self, epoch: int, step: int) -> None:
        """Be told, before every training step, how far the training is."""

    def views(self, batch: Batch, learners: Iterable[str]) -> dict[str, Any]:
        """What each network is called with: by default the batch's inputs, once."""
        return dict.fromkeys(learners, batch.inputs)

    def gather(self, outputs: Mapping[str, Outputs], batch: Batch) -> dict[str, Outputs]:
        """The learners' outputs, with answers made out of several of them under names of their own.

        Called in evaluation too, then on inputs alone.
        """
        return dict(outputs)

    def answers(self, outputs: Mapping[str, Outputs], batch: Batch) -> list[Answer]:
        """What the labels count for: by default every learner's logits, alike."""
        return all_alike(outputs, batch)

    def lessons(self, outputs: Mapping[str, Outputs], batch: Batch) -> list[Lesson]:
        """Who learns from whom on this batch, given every learner's outputs; the teacher's side carries no gradient."""
        raise NotImplementedError(f"{type(self).__name__} must define lessons().")

    def remember(self, outputs: Mapping[str, Outputs], batch: Batch) -> None:
        """Keep of a step, whose loss is computed, what later ones need."""

    def after_step(self, networks: Mapping[str, nn.Module]) -> None:
        """Follow the networks, whose weights the optimiser has just changed."""

    # In evaluation

    def observe_own(self, inputs: Any) -> dict[str, Outputs]:
        """What networks of its own, which may be deployed, give on ``inputs``, by name."""
        return {}

    def examine(self, outputs: Mapping[str, Outputs], target: Tensor) -> None:
        """Be shown what the learners give on a validation batch, for what is learnt from held-out samples."""

    def conclude(self) -> None:
        """Be told that the validation set is over."""

    @property
    def deployable(self) -> dict[str, nn.Module]:
        """Networks of its own that may be deployed, by name."""
        return {}
