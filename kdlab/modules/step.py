"""The parts of a training step: the learners that a network's heads are, one lesson's loss, sums of terms."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

from torch import Tensor

from kdlab.knowledge import Knowledge
from kdlab.outputs import Batch, Outputs
from kdlab.teaching import Lesson


def compared(knowledge: Knowledge, lesson: Lesson, outputs: Mapping[str, Outputs], batch: Batch) -> Tensor:
    """The loss of one lesson, unweighted."""
    student, target = taught(lesson, outputs, batch)
    return knowledge.compare(student, lesson.teacher, target, (lesson.learner, lesson.source))


def taught(lesson: Lesson, outputs: Mapping[str, Outputs], batch: Batch) -> tuple[Outputs, Tensor]:
    """Who is taught and with which labels: the learner on the batch's, where the lesson does not say otherwise."""
    student = outputs[lesson.learner] if lesson.student is None else lesson.student
    return student, batch.target if lesson.target is None else lesson.target


def indexed(lesson: Lesson, index: Tensor | None) -> Lesson:
    """The lesson with the samples' index on the teacher's side."""
    return lesson._replace(teacher=dataclasses.replace(lesson.teacher, index=index))


def times(value: Tensor, weight: float) -> Tensor:
    """The product; for a weight of 1 the value itself, which costs neither a step forward nor one backward."""
    return value if weight == 1 else value * weight


def sum_of(values: Iterable[Tensor]) -> Tensor:
    """The sum of one or more scalars; of one, the scalar itself, so that a term of weight 0 changes no bit."""
    first, *rest = values
    for value in rest:
        first = first + value
    result: Tensor = first
    return result
