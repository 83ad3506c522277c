"""What losses ask of their arguments and inputs; every failure is one sentence that says what to change."""

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
        """Both names and shapes, for messages."""
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
    """The tapped layers, paired in the order in which they are named."""
    sides = [(student.layers, student.names), (teacher.layers, teacher.names)]
    names = [[*given, *(f"number {i}" for i in range(len(given), len(layers)))] for layers, given in sides]
    if len(student.layers) != len(teacher.layers):
        raise InputError(
            f"{len(student.layers)} student layers {names[0]} cannot be paired with {len(teacher.layers)} teacher "
            f"layers {names[1]}: name as many of one as of the other, in matching order."
        )
    if not student.layers:
        raise InputError("This loss compares layers and none is tapped: name student_layers and teacher_layers.")
    pairs = [Pair(*each) for each in zip(student.layers, teacher.layers, *names, strict=True)]
    for pair in pairs:
        if min(pair.student.dim(), pair.teacher.dim()) < 2 or pair.student.shape[0] != pair.teacher.shape[0]:
            raise InputError(f"Layers need a common batch axis and at least one more axis, but {pair.shapes}.")
        if not pair.student.numel() or not pair.teacher.numel():
            raise InputError(f"There is nothing to compare: {pair.shapes}.")
    return pairs


def map_pairs(student: Outputs, teacher: Outputs) -> list[Pair]:
    """As :func:`layer_pairs`, for losses that only make sense of maps (B, C, H, W)."""
    pairs = layer_pairs(student, teacher)
    for pair in pairs:
        if pair.student.dim() != 4 or pair.teacher.dim() != 4:
            raise InputError(f"Maps of shape (B, C, H, W) are needed, but {pair.shapes}.")
    return pairs


def same_logits(student: Outputs, teacher: Outputs) -> None:
    """Both networks give logits (B, K) or (B, L, V) of one shape."""
    ours, theirs = student.logits.shape, teacher.logits.shape
    if len(ours) not in (2, 3) or len(ours) != len(theirs):
        raise InputError(
            f"Logits must be (B, K), or (B, L, V) for tokens, on both sides, not {tuple(ours)} and {tuple(theirs)}."
        )
    if ours[-1] != theirs[-1]:
        raise InputError(
            f"The student has {ours[-1]} classes and the teacher {theirs[-1]}; give both the same classes."
        )
    if ours != theirs:
        raise InputError(
            f"Student logits {tuple(ours)} and teacher logits {tuple(theirs)} are not of the same positions."
        )


def class_labels(target: Tensor, logits: Tensor) -> Tensor:
    """``target`` as int64 if it holds one integer class label for each row of ``logits`` (B, K)."""
    if logits.dim() != 2:
        raise InputError(f"This loss needs logits (B, K), one row a label, not {tuple(logits.shape)}.")
    if target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
        raise InputError(
            f"This loss needs integer class labels, not {target.dtype}: it has no meaning for mixed or soft labels."
        )
    if target.shape != logits.shape[:1]:
        raise InputError(f"Class labels must be ({logits.shape[0]},), one a sample, not {tuple(target.shape)}.")
    return target.long()


def embeddings(student: Outputs, teacher: Outputs) -> tuple[Tensor, Tensor]:
    """Each side's single tapped layer flattened to (B, D) if it has one, else its embedding."""
    ours, theirs = _embedding(student, "student"), _embedding(teacher, "teacher")
    if len(ours) != len(theirs):
        raise InputError(
            f"The student's embedding has {len(ours)} samples and the teacher's {len(theirs)}; compare one batch."
        )
    return ours, theirs


def _embedding(outputs: Outputs, side: str) -> Tensor:
    if len(outputs.layers) > 1:
        raise InputError(f"This loss compares one layer a network, but {len(outputs.layers)} {side} layers are tapped.")
    value = outputs.layers[0] if outputs.layers else outputs.embedding
    if value is None:
        raise InputError(
            f"The {side} has no embedding (its last layer is not linear, or it is several networks): tap the layer to "
            "compare."
        )
    if value.dim() < 2:
        raise InputError(f"The {side}'s embedding must be (B, D), not {tuple(value.shape)}.")
    return value.flatten(1)
