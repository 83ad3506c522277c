"""WTTM: TTM with larger weights on samples with an uncertain teacher (Zheng and Yang 2024)."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from kdlab.losses.functional import full_precision
from kdlab.losses.response.logits import sample_logits
from kdlab.losses.response.ttm import TTM
from kdlab.outputs import Outputs


class WTTM(TTM):
    r"""Transformed teacher matching, weighted by the power sum of the teacher's probabilities in each sample.

    .. math:: L = \frac{1}{B} \sum_b U_b \, \mathrm{KL}(\tilde p_b \| q_b), \qquad U_b = \sum_k p_{bk}^l

    with the notation of :class:`TTM`. U lies between 1 (a certain teacher) and :math:`K^{1-l}` (a uniform one); the
    weights are not normalized, so values are large. Equal networks are no minimum. Computed in float32, or in float64
    for float64 logits.

    Recipe: CIFAR-100 (authors, vgg13 to vgg8) l = 0.2, weight 4, with weight 1 on the labels and CRD with weight 0.8:
    the only setting that the code gives.

    Args:
        power: l, positive; a temperature T is 1 / T.

    Shapes:
        logits: (B, K), the same for both networks.
        target: not used.

    Raises:
        InputError: a power out of range, networks that differ in classes or batch, an empty batch.

    Paper: K. Zheng, E.-H. Yang, "Knowledge Distillation Based on Transformed Teacher Matching", ICLR 2024, arXiv
    2402.11148. This gives the value of the authors' code.

    >>> import torch
    >>> student, teacher = Outputs(torch.tensor([[2.0, 0.0]])), Outputs(torch.tensor([[0.0, 2.0]]))
    >>> WTTM(power=0.5)(student, teacher, torch.tensor([0]))
    tensor(1.2925)
    """

    needs: ClassVar[tuple[str, ...]] = ("logits",)
    recipe_weight: ClassVar[float] = 4.0

    def __init__(self, power: float = 0.2) -> None:
        super().__init__(power)

    @full_precision
    def per_sample(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        """Return the weighted divergence for every sample, (B,)."""
        _, teacher_logits = sample_logits(student, teacher)
        flatness = ((teacher_logits * self.power).logsumexp(1) - teacher_logits.logsumexp(1) * self.power).exp()
        return flatness * super().per_sample(student, teacher, target)
