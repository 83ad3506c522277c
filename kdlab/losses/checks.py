"""Checks of the arguments and inputs of losses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from kdlab.errors import InputError
from kdlab.outputs import Outputs

_Choice = TypeVar("_Choice", bound=str | None)


class Pair(NamedTuple):
    """One student layer and the teacher layer it is compared with."""

    student: Tensor
    teacher: Tensor
    student_name: str
    teacher_name: str

    @property
    def shapes(self) -> str:
        """Return both names and shapes, for messages."""
        return (
            f"student layer {self.student_name!r} gives {tuple(self.student.shape)} "
            f"and teacher layer {self.teacher_name!r} gives {tuple(self.teacher.shape)}"
        )


def at_least(
    name: str,
    value: float,
    least: float,
    *,
    strictly: bool = False,
    below: float = math.inf,
    most: float = math.inf,
) -> float:
    """Return ``value`` if it is a finite number in the range that the other arguments give.

    Args:
        name: name of the argument, for the message.
        value: the number to check.
        least: lower bound.
        strictly: exclude the lower bound.
        below: upper bound, excluded.
        most: upper bound, included.

    Raises:
        InputError: ``value`` is not a finite number in this range.
    """
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not number or value < least or (strictly and value == least):
        bound = f"above {least:g}" if strictly else f"of at least {least:g}"
        raise InputError(f"{name} must be a finite number {bound}, not {value!r}.")
    if value >= below:
        raise InputError(f"{name} must be below {below:g}, not {value!r}.")
    if value > most:
        raise InputError(f"{name} must be at most {most:g}, not {value!r}.")
    return value


def one_of(name: str, value: _Choice, choices: Sequence[_Choice]) -> _Choice:
    """Return ``value`` if it is one of ``choices``.

    Raises:
        InputError: it is not.

    >>> one_of("over", "some", ("all", "others"))
    Traceback (most recent call last):
    kdlab.errors.InputError: over must be 'all' or 'others', not 'some'.
    """
    if value not in choices:
        *others, last = map(repr, choices)
        raise InputError(f"{name} must be {', '.join(others)} or {last}, not {value!r}.")
    return value


def layer_pairs(student: Outputs, teacher: Outputs) -> list[Pair]:
    """Return the tapped layers, paired in the order of their names.

    Raises:
        InputError: no layers, unequal numbers of layers, layers without a common batch axis, empty layers.
    """
    sides = [(student.layers, student.names), (teacher.layers, teacher.names)]
    names = [[*names, *(f"number {i}" for i in range(len(names), len(layers)))] for layers, names in sides]
    if len(student.layers) != len(teacher.layers):
        raise InputError(
            f"{len(student.layers)} student layers {names[0]} cannot be paired with {len(teacher.layers)} teacher "
            f"layers {names[1]}: name equally many student_layers and teacher_layers, in matching order."
        )
    if not student.layers:
        raise InputError("This loss compares layers and none is tapped: set student_layers and teacher_layers.")
    pairs = [Pair(*each) for each in zip(student.layers, teacher.layers, *names, strict=True)]
    for pair in pairs:
        if min(pair.student.dim(), pair.teacher.dim()) < 2 or pair.student.shape[0] != pair.teacher.shape[0]:
            raise InputError(f"Layers must have a common batch axis and at least one more axis, but {pair.shapes}.")
        if not pair.student.numel() or not pair.teacher.numel():
            raise InputError(f"The layers are empty: {pair.shapes}.")
    return pairs


def map_pairs(student: Outputs, teacher: Outputs) -> list[Pair]:
    """Return :func:`layer_pairs` of feature maps (B, C, H, W).

    Raises:
        InputError: as :func:`layer_pairs`, or a layer of another shape.
    """
    pairs = layer_pairs(student, teacher)
    for pair in pairs:
        if pair.student.dim() != 4 or pair.teacher.dim() != 4:
            raise InputError(f"This loss needs feature maps (B, C, H, W), but {pair.shapes}.")
    return pairs


def same_logits(student: Outputs, teacher: Outputs) -> None:
    """Check that both networks give logits of one shape, with at least 2 axes.

    Raises:
        InputError: they do not.
    """
    student_shape, teacher_shape = tuple(student.logits.shape), tuple(teacher.logits.shape)
    if len(student_shape) < 2 or len(student_shape) != len(teacher_shape):
        raise InputError(
            f"Logits must be (B, K), or have one class axis more than the labels, on both sides, not {student_shape} "
            f"and {teacher_shape}."
        )
    if len(student_shape) == 2 and student_shape[1] != teacher_shape[1]:
        raise InputError(
            f"The student has {student_shape[-1]} classes and the teacher {teacher_shape[-1]}; "
            "give both the same classes."
        )
    if student_shape != teacher_shape:
        raise InputError(
            f"Student logits {student_shape} and teacher logits {teacher_shape} differ in batch size or positions."
        )


def class_labels(target: Tensor, logits: Tensor) -> Tensor:
    """Return ``target`` as int64 if it holds one integer class label for each row of ``logits`` (B, K).

    Raises:
        InputError: it does not.
    """
    if logits.dim() != 2:
        raise InputError(f"This loss needs logits (B, K), one row for each label, not {tuple(logits.shape)}.")
    if target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
        raise InputError(
            f"This loss needs integer class labels, not {target.dtype}: mixed or soft labels are not supported."
        )
    if target.shape != logits.shape[:1]:
        raise InputError(f"Class labels must be ({logits.shape[0]},), one for each sample, not {tuple(target.shape)}.")
    return target.long()


def embeddings(student: Outputs, teacher: Outputs) -> tuple[Tensor, Tensor]:
    """Return each side's single tapped layer, flattened to (B, D), or its embedding if no layer is tapped.

    Raises:
        InputError: several layers, no embedding, an empty batch, or different batch sizes.
    """
    student_embedding, teacher_embedding = _embedding(student, "student"), _embedding(teacher, "teacher")
    if len(student_embedding) != len(teacher_embedding):
        raise InputError(
            f"The student's embedding has {len(student_embedding)} samples "
            f"and the teacher's {len(teacher_embedding)}; compare one batch."
        )
    if not student_embedding.numel() or not teacher_embedding.numel():
        raise InputError("The batch is empty: drop empty batches.")
    return student_embedding, teacher_embedding


def _embedding(outputs: Outputs, side: str) -> Tensor:
    if len(outputs.layers) > 1:
        raise InputError(
            f"This loss compares one layer of each network, but {len(outputs.layers)} {side} layers are tapped."
        )
    value = outputs.layers[0] if outputs.layers else outputs.embedding
    if value is None:
        raise InputError(
            f"The {side} has no embedding (its last layer is not linear, or it is an ensemble): tap one layer."
        )
    if value.dim() < 2:
        raise InputError(f"The {side}'s embedding must be (B, D), not {tuple(value.shape)}.")
    return value.flatten(1)
