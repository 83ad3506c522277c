"""The format of a task: kind of target, class axis, and the positions that count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdlab.errors import InputError
from kdlab.outputs.containers import Outputs

Kind = Literal["classes", "soft", "binary", "multilabel", "regression", "other"]

ALL_KINDS: tuple[Kind, ...] = get_args(Kind)
CLASSES: tuple[Kind, ...] = ("classes", "soft")
"""Exactly one class is right at each position."""

KINDS: tuple[tuple[tuple[type[nn.Module], ...], Kind], ...] = (
    ((nn.BCEWithLogitsLoss,), "binary"),
    ((nn.MultiLabelSoftMarginLoss,), "multilabel"),
    ((nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss), "regression"),
    ((nn.CrossEntropyLoss, nn.NLLLoss, nn.MultiMarginLoss), "classes"),
)
"""What targets torch's own losses take; all have the class axis 1."""


DESCRIPTIONS: dict[Kind, str] = {
    "classes": "class indices",
    "soft": "class probabilities",
    "binary": "binary, one logit a position (Bernoulli KL)",
    "multilabel": "several labels (Bernoulli KL, summed over them)",
    "regression": "regression (squared differences)",
    "other": "unknown (the task loss alone is reported; it may declare target_kind)",
}


class TaskFormat(NamedTuple):
    """What the outputs of a network mean, for losses and metrics alike.

    Attributes:
        kind: "classes" (class indices), "soft" (class probabilities), "binary" (one logit a position), "multilabel" (a
            logit for each label), "regression", or "other": unknown, so that nothing but the task loss is computed.
        axis: the axis of the logits over which classes, labels or regressed values go.
        ignore_index: the class index of positions that do not count; ``None`` if there is none.
    """

    kind: Kind = "classes"
    axis: int = -1
    ignore_index: int | None = None

    @property
    def description(self) -> str:
        """Return the format as text."""
        axis = "" if self.kind == "binary" else f", over axis {self.axis} of the logits"
        return f"{DESCRIPTIONS[self.kind]}{axis}" + (
            f"; label {self.ignore_index} is ignored" if self.ignore_index is not None else ""
        )

    @property
    def has_classes(self) -> bool:
        """Return whether exactly one class is right at each position."""
        return self.kind in CLASSES

    def mean(self, logits: Sequence[Tensor]) -> Tensor:
        """Return the logits of an ensemble: of the mean of class or label probabilities, or the mean of the values."""
        stacked = torch.stack([*logits])
        stacked = stacked.to(torch.promote_types(stacked.dtype, torch.float32))
        if self.has_classes:
            return stacked.softmax(self.axis if self.axis < 0 else self.axis + 1).mean(0).log()
        if self.kind in ("binary", "multilabel"):
            return stacked.sigmoid().mean(0).logit()
        if self.kind == "regression":
            return stacked.mean(0)
        raise InputError(
            "An ensemble needs to know what the logits mean: let the task loss declare target_kind, one of "
            f"{ALL_KINDS[:-1]}."
        )

    def divergence(self, student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
        """Return the distance of student from teacher at each position, from rows (N, K): (N,), without a factor T^2.

        The Kullback-Leibler divergence, teacher first, of softened class probabilities; of the probabilities of each
        label, summed over the labels; for regression the mean squared difference, without temperature.
        """
        if self.kind == "regression":
            return (student - teacher).square().mean(1)
        student, teacher = student / temperature, teacher / temperature
        if self.kind in ("binary", "multilabel"):
            return bernoulli_kl(student, teacher).sum(1)
        return F.kl_div(student.log_softmax(1), teacher.log_softmax(1), reduction="none", log_target=True).sum(1)

    def weight(self, task: nn.Module, target: Tensor) -> Tensor:
        """Return what the mean of a task loss on a batch divides by: samples, positions or the sum of class weights."""
        if self.kind in ("other", "soft"):
            count = len(target) if self.kind == "other" else target.numel() // target.shape[self.axis]
            return torch.tensor(count, device=target.device)
        counted = self.counted(target.numel(), target)
        weights = task.weight if isinstance(task, (nn.CrossEntropyLoss, nn.NLLLoss)) else None
        if self.kind != "classes" or weights is None:
            return counted.sum() if counted is not None else torch.tensor(target.numel(), device=target.device)
        labels = target.flatten() if counted is None else target.flatten()[counted]
        return weights[labels].double().sum()

    def rows(self, logits: Tensor) -> Tensor:
        """Return logits as (N, K), one row for every position: samples, tokens, pixels."""
        if logits.dim() == 2:
            return logits
        if self.kind == "binary" or logits.dim() == 1:
            return logits.reshape(-1, 1)
        return logits.movedim(self.axis, -1).flatten(0, -2)

    def targets(self, target: Tensor) -> Tensor:
        """Return targets for :meth:`rows`: (N,) class indices, else (N, K)."""
        return target.flatten() if self.kind == "classes" else self.rows(target)

    def counted(self, rows: int, target: Tensor, mask: Tensor | None = None) -> Tensor | None:
        """Return which of the rows count, (N,) bool: those with a label, and a mask of 1; ``None`` if all do."""
        counted = None
        if self.kind == "classes" and self.ignore_index is not None and target.numel() == rows:
            counted = target.flatten() != self.ignore_index
        if mask is not None and mask.numel() == rows:
            counted = mask.flatten().bool() if counted is None else counted & mask.flatten().bool()
        return counted

    def select(self, student: Outputs, teacher: Outputs, target: Tensor) -> tuple[Outputs, Outputs, Tensor]:
        """Return outputs with logits (N, K), one row for each position that counts, and their targets.

        Where the logits are (B, K) already, whole samples are left out: rows of layers, embedding and index too.
        """
        rows = len(self.rows(student.logits))
        counted = self.counted(rows, target, student.mask)
        if student.logits.dim() == 2:
            if counted is None or bool(counted.all()):
                return student, teacher, target
            return samples(student, counted), samples(teacher, counted), target[counted]

        def pick(values: Tensor) -> Tensor:
            return values if counted is None else values[counted]

        def flat(outputs: Outputs) -> Outputs:
            positions = rows // max(len(outputs.logits), 1)
            members = tuple(
                (replace(each, logits=pick(self.rows(each.logits))), pick(weight.repeat_interleave(positions)))
                for each, weight in outputs.members
            )
            return replace(outputs, logits=pick(self.rows(outputs.logits)), members=members, mask=None)

        targets = self.targets(target)
        return flat(student), flat(teacher), pick(targets) if len(targets) == rows else target


CLASS_SCORES = TaskFormat()
"""Class scores (B, K) and class indices."""


def bernoulli_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the KL divergence of Bernoulli distributions given as log-odds, teacher first, element by element."""
    # log p = logsigmoid(u) and log(1 - p) = logsigmoid(-u) stay finite where p is 0 or 1.
    yes = torch.sigmoid(teacher) * (F.logsigmoid(teacher) - F.logsigmoid(student))
    return yes + torch.sigmoid(-teacher) * (F.logsigmoid(-teacher) - F.logsigmoid(-student))


def samples(outputs: Outputs, chosen: Tensor) -> Outputs:
    """Return the outputs of the samples that are ``chosen``, (B,) bool, with all their views."""

    def pick(value: Tensor) -> Tensor:
        times = len(value) // len(chosen)
        return value[chosen if times == 1 else chosen.repeat_interleave(times)]

    index, mask = outputs.index, outputs.mask
    outputs = outputs.map(pick)
    return replace(outputs, index=None if index is None else pick(index), mask=None if mask is None else pick(mask))


def task_format(
    task: nn.Module | None, logits: Tensor, target: Tensor | None, mask: Tensor | None = None
) -> TaskFormat:
    """Return the format that a task loss, its logits and its targets have.

    torch's own losses have the class axis 1. Another loss may declare ``target_kind``, ``class_axis`` and
    ``ignore_index`` as attributes; what it does not declare is inferred from dtype and shapes. A subclass of one of
    torch's may declare another kind: BCEWithLogitsLoss on one-hot targets means several labels unless it is "soft".

    Args:
        task: the task loss; ``None`` for class scores, whose axis the shapes show.
        logits: (B, K), (B, K, ...) or (B, ..., K); (B,) or (B, 1) for one logit.
        target: the targets of the same batch; ``None`` if there are none, as in prediction.
        mask: 1 at the positions that count, if there are several a sample.

    Raises:
        InputError: an unknown declared kind, or a class axis that cannot be settled.
    """
    known = next((kind for types, kind in KINDS if isinstance(task, types)), None)
    declared: Kind | None = getattr(task, "target_kind", known)
    if declared is not None and declared not in ALL_KINDS:
        raise InputError(f"{type(task).__name__}.target_kind must be one of {ALL_KINDS}, not {declared!r}.")
    if declared is None and target is not None and _are_probabilities(target, logits):
        declared = "soft"
    if declared is None:
        has_indices = target is not None and not target.is_floating_point() and target.shape != logits.shape
        declared = "classes" if has_indices or task is None else "other"
    kind = declared
    if kind == "classes" and target is not None and target.is_floating_point() and target.shape == logits.shape:
        kind = "soft"
    if kind == "binary" and logits.dim() > 1 and logits.shape[1] > 1:
        kind = "multilabel"
    ignore = getattr(task, "ignore_index", -100)
    axis = getattr(task, "class_axis", 1 if known is not None else None)
    if axis is None:
        axis = _inferred_axis(logits, () if target is None else target.shape, mask) if kind == "classes" else 1
    return TaskFormat(kind, axis, ignore if kind == "classes" else None)


def _are_probabilities(target: Tensor, logits: Tensor) -> bool:
    """Return whether targets (B, K) are class probabilities, and not all of them one-hot."""
    if not target.is_floating_point() or target.shape != logits.shape or target.dim() != 2:
        return False
    sums = target.float().sum(1)
    return bool((target >= 0).all() and (sums - 1).abs().max() < 1e-2 and ((target > 0) & (target < 1)).any())


def _inferred_axis(logits: Tensor, target: Sequence[int], mask: Tensor | None) -> int:
    """Return the class axis of logits for class indices: that without which their shape is that of the targets."""
    shape = tuple(logits.shape)
    if len(shape) <= 2:
        return -1
    wanted = {tuple(target), tuple(mask.shape) if mask is not None else ()}
    fits = [axis for axis, rest in ((1, shape[:1] + shape[2:]), (-1, shape[:-1])) if rest in wanted]
    if len(fits) != 1:
        why = "fit both" if fits else "fit neither"
        raise InputError(
            f"The class axis of logits {shape} is unclear: labels {tuple(target)} {why} axis 1 and the last axis. Let "
            "the task loss declare class_axis, or use torch.nn.CrossEntropyLoss, whose class axis is 1."
        )
    return fits[0]
