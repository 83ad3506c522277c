"""DistillKL: divergence of score distributions over candidates (Lin et al. 2020)."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from kdlab.losses.checks import at_least
from kdlab.losses.functional import full_precision
from kdlab.losses.response.logits import PerSample, sample_logits
from kdlab.outputs import Outputs


class DistillKL(PerSample):
    r"""Kullback-Leibler divergence of the distributions of scores over a query's candidates.

    .. math:: L = T_s^2 \frac{1}{B} \sum_b \mathrm{KL}\left( \mathrm{softmax}(z^t_b / T_t) \,\|\,
              \mathrm{softmax}(z^s_b / T_s) \right)

    Each network has its own temperature, since cosines and the scores of a cross-encoder differ in scale; with one for
    both it is :class:`~kdlab.losses.SoftTargets`. Computed in float32, or in float64 for float64 logits.

    Recipe: weight 1, weight 0 on the labels, for rankers; none for images.

    Args:
        student_temperature: T_s, positive; the factor T_s^2 keeps the gradient's size when it changes.
        teacher_temperature: T_t, positive.

    Shapes:
        logits: (B, K) scores of K candidates of each query.
        target: not used.

    Raises:
        InputError: a number out of range; the networks differ in candidates or batch, an empty batch.

    Paper: S.-C. Lin, J.-H. Yang, J. Lin, "Distilling Dense Representations for Ranking using Tightly-Coupled Teachers",
    2020, arXiv 2010.11386. The value of sentence-transformers' ``DistillKLDivLoss``.

    >>> import torch
    >>> student, teacher = Outputs(torch.tensor([[0.2, 0.0]])), Outputs(torch.tensor([[4.0, 0.0]]))
    >>> DistillKL(student_temperature=0.05, teacher_temperature=1.0)(student, teacher, torch.tensor([0]))
    tensor(0.)
    """

    needs: ClassVar[tuple[str, ...]] = ("logits",)
    recipe_weight: ClassVar[float] = 1.0
    minimum: ClassVar[float | None] = 0.0

    def __init__(self, student_temperature: float = 1.0, teacher_temperature: float = 1.0) -> None:
        super().__init__()
        self.student_temperature = at_least("student_temperature", student_temperature, 0, strictly=True)
        self.teacher_temperature = at_least("teacher_temperature", teacher_temperature, 0, strictly=True)

    @full_precision
    def per_sample(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        """Return the divergence of every query, (B,)."""
        ours, theirs = sample_logits(student, teacher)
        log_q, log_p = (
            F.log_softmax(ours / self.student_temperature, 1),
            F.log_softmax(theirs / self.teacher_temperature, 1),
        )
        return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(1) * self.student_temperature**2
