"""Losses taken sample by sample: with a weight for each, or with teachers dropped at random."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kdlab.errors import InputError
from kdlab.losses.functional import full_precision
from kdlab.outputs import Outputs


@full_precision
def in_full_precision(loss: nn.Module, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
    """Return the value of a loss."""
    value: Tensor = loss(student, teacher, target)
    return value


@full_precision
def sample_by_sample(loss: nn.Module, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
    r"""Return the sum over teachers m of the mean over samples b of :math:`w_{mb} loss_b(student, m, target)`."""
    weighted = [(weight * per_sample(loss, student, outputs, target)).mean() for outputs, weight in teacher.members]
    return torch.stack(weighted).sum()


@full_precision
def each_sample(loss: nn.Module, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
    """Return the loss of every sample, (B,)."""
    return per_sample(loss, student, teacher, target)


def per_sample(loss: nn.Module, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
    """Return the loss of every sample, (B,).

    Raises:
        InputError: the loss gives one number a batch.
    """
    compute = getattr(loss, "per_sample", None)
    if compute is None:
        raise InputError(
            f"{type(loss).__name__} gives one number a batch, but its teachers count differently for each sample: use "
            "a loss that has per_sample(), such as SoftTargets or CosineSmoothL1, or another ensemble or gate."
        )
    value: Tensor = compute(student, teacher, target)
    return value


def dropped_mean(values: Sequence[Tensor], dropping: float) -> Tensor:
    r"""Return the mean of the losses that are kept: of every sample the largest, and others with chance 1 - p.

    .. math:: L = \frac{\sum_{m, b} c_{mb} L_{mb}}{\sum_{m, b} c_{mb}}, \qquad
              c_{mb} = 1 \text{ for } m = \arg\max_j L_{jb}, \text{ else drawn with } P(c_{mb} = 0) = p

    M. B. Sariyildiz et al., "UNIC: Universal Classification Models via Multi-teacher Distillation", ECCV 2024, arXiv
    2408.05088, section 3.3, and its code. Random numbers are the step's, so that a resumed run draws the same.

    Args:
        values: M losses (B,), one for each teacher.
        dropping: p, from 0 to 1.
    """
    losses = torch.stack(list(values))
    counted = torch.rand(losses.shape, device=losses.device) >= dropping
    counted.scatter_(0, losses.detach().argmax(0, keepdim=True), True)
    return (losses * counted).sum() / counted.sum()
