"""The questions that every way of teaching answers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor, nn

from kdlab.errors import InputError
from kdlab.outputs import Batch, Observer, Outputs


class Lesson(NamedTuple):
    """One comparison to be made in a step: the learner by name, what it is held against, and how much it counts."""

    learner: str
    teacher: Outputs
    weight: float = 1.0


class Teaching(nn.Module):
    """Who teaches whom.

    A subclass answers :meth:`lessons`; it overrides :meth:`views` where a learner sees something else than the batch,
    and :meth:`listen` where it has networks of its own.
    """

    @property
    def observers(self) -> Sequence[Observer]:
        """What runs this teaching's own networks, if it has any."""
        return ()

    is_rehearsing = False

    @contextmanager
    def rehearsing(self) -> Iterator[None]:
        """Run networks as they are, for a dry batch that may be on another device than the training."""
        self.is_rehearsing = True
        try:
            yield
        finally:
            self.is_rehearsing = False

    def listen(self, layers: Sequence[str], only_layers: bool = False) -> None:
        """Be told, before the first step, which layers the knowledge taps on the teacher's side, and whether it reads
        nothing else (no logits, no embedding) in a lesson.
        """

    def advance(self, epoch: int, step: int) -> None:
        """Be told, before every training step, how far the training is."""

    def survey(self, batches: Iterable[Batch]) -> Iterator[tuple[Outputs, Tensor]]:
        """What the teacher gives on each of ``batches``, with its labels, before any training."""
        raise InputError(f"{type(self).__name__} has no fixed teacher to look at the training set with.")

    def views(self, batch: Batch, learners: Iterable[str]) -> dict[str, Any]:
        """What each learner is called with: by default the batch's inputs, once."""
        return dict.fromkeys(learners, batch.inputs)

    def lessons(self, outputs: Mapping[str, Outputs], batch: Batch) -> list[Lesson]:
        """Who learns from whom on this batch, given every learner's outputs; the teacher's side carries no gradient."""
        raise NotImplementedError(f"{type(self).__name__} must define lessons().")
