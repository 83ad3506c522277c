"""Shared parts of the losses on logits (B, K): base class, checks, divergences for every sample."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdlab.errors import InputError
from kdlab.losses.checks import same_logits
from kdlab.losses.functional import full_precision
from kdlab.outputs import Outputs
from kdlab.outputs.task_format import ALL_KINDS, CLASSES, Kind

ONE_CLASS = (
    "One class has probability 1 whatever its logit: compare at least 2 classes, or use a task loss for one logit, "
    "such as torch.nn.BCEWithLogitsLoss."
)


class PerSample(nn.Module):
    """A loss on logits (B, K) that is the mean of one value for every sample."""

    @full_precision
    def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        """Return the mean over the samples, a scalar; gradient to the student only."""
        return self.per_sample(student, teacher, target).mean()

    def per_sample(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        """Return the value for every sample, (B,); a subclass defines it under :func:`full_precision`."""
        raise NotImplementedError(f"{type(self).__name__} must define per_sample().")


def sample_logits(student: Outputs, teacher: Outputs, least: int = 2) -> tuple[Tensor, Tensor]:
    """Return the logits (B, K) of both sides, the teacher's detached.

    Raises:
        InputError: they are not of one shape (B, K), K is below ``least``, or the batch is empty.
    """
    same_logits(student, teacher)
    if student.logits.dim() != 2:
        raise InputError(f"This loss needs logits (B, K), one row for each sample, not {tuple(student.logits.shape)}.")
    if not student.logits.numel():
        raise InputError("The batch has no sample to compare: drop empty batches.")
    if student.logits.shape[1] < least:
        raise InputError(ONE_CLASS)
    return student.logits, teacher.logits.detach()


def divergence(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Return the KL divergence of softened class distributions (B, K), teacher first: (B,), without a factor T^2."""
    log_q, log_p = F.log_softmax(student / temperature, 1), F.log_softmax(teacher / temperature, 1)
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(1)


def soft_cross_entropy(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return the cross-entropy of softened class distributions (B, K), teacher first: (B,), without a factor T^2."""
    return -(F.softmax(teacher / temperature, 1) * F.log_softmax(student / temperature, 1)).sum(1)


def split(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the label's log-odds against all other classes (B,), and the logits of these (B, K - 1)."""
    others = torch.arange(logits.shape[1] - 1, device=logits.device).expand(len(logits), -1)
    others = logits.gather(1, others + (others >= labels[:, None]))
    return logits.gather(1, labels[:, None]).squeeze(1) - others.logsumexp(1), others


def needs_of(loss: nn.Module) -> tuple[str, ...]:
    """Return the inputs that a wrapped loss needs."""
    return tuple(getattr(loss, "needs", ()))


def kinds_of(loss: nn.Module) -> tuple[Kind, ...]:
    """Return the kinds of targets that a loss is right for: as it declares, else classes alone if it reads logits."""
    declared: tuple[Kind, ...] | None = getattr(loss, "kinds", None)
    return declared or (CLASSES if {"logits", "classes"} & set(needs_of(loss)) else ALL_KINDS)


def views_of(loss: nn.Module) -> tuple[str, ...]:
    """Return the views that a wrapped loss reads."""
    return tuple(getattr(loss, "views", ()))


def temperatures_of(losses: Iterable[nn.Module]) -> tuple[float, ...]:
    """Return the fixed temperatures at which losses, and losses inside them, read the teacher's logits."""
    temperatures = set[float]()
    for part in (part for loss in losses for part in loss.modules()):
        for name in ("temperature", "teacher_temperature", "temperatures"):
            value = getattr(part, name, ())
            temperatures |= {
                float(one) for one in (value if isinstance(value, tuple) else (value,)) if isinstance(one, int | float)
            }
    return tuple(sorted(temperatures))
