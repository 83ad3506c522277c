"""WSLD: soft targets, less weight where the student fits the label better than the teacher (Zhou et al. 2021)."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from kdlab.losses.checks import at_least, class_labels
from kdlab.losses.functional import full_precision
from kdlab.losses.response.logits import PerSample, sample_logits, soft_cross_entropy, split
from kdlab.outputs import Outputs


class WSLD(PerSample):
    r"""Cross-entropy with the teacher's softened probabilities, weighted by the ratio of both networks' label losses.

    .. math:: L = -T^2 \, \frac{1}{B} \sum_b w_b \sum_k p_{bk} \log q_{bk}, \qquad
              w_b = 1 - \exp\Big(-\frac{-\log q^1_{b y}}{-\log p^1_{b y} + 10^{-7}}\Big)

    with :math:`p, q` the softmax of teacher and student at T, and :math:`p^1, q^1` at temperature 1. The weights get no
    gradient. A cross-entropy, not a divergence: equal networks are no minimum. Computed in float32, or in float64 for
    float64 logits.

    Recipe: CIFAR-100 T = 4, weight 2.25; ImageNet T = 2, weight 2.5; with weight 1 on the labels.

    Args:
        temperature: T, positive.

    Shapes:
        logits: (B, K) with K of at least 2, the same for both networks.
        target: (B,) integer class labels.

    Raises:
        InputError: a temperature out of range, networks that differ in classes or batch, labels that are not class
            indices, one class only, an empty batch.

    Paper: H. Zhou, L. Song, J. Chen, Y. Zhou, G. Wang, J. Yuan, Q. Zhang, "Rethinking Soft Labels for Knowledge
    Distillation: A Bias-Variance Tradeoff Perspective", ICLR 2021, arXiv 2102.00650. This follows cls_KD and the
    authors' code, whose total adds the labels' cross-entropy and the weight.

    >>> student, teacher = Outputs(torch.tensor([[2.0, 0.0, 1.0]])), Outputs(torch.tensor([[3.0, 1.0, 0.0]]))
    >>> WSLD()(student, teacher, torch.tensor([0]))
    tensor(15.5961)
    """

    needs: ClassVar[tuple[str, ...]] = ("logits", "classes")
    recipe_weight: ClassVar[float] = 2.25
    minimum: ClassVar[float | None] = None
    true_gradient: ClassVar[bool] = False

    def __init__(self, temperature: float = 4.0) -> None:
        super().__init__()
        self.temperature = at_least("temperature", temperature, 0, strictly=True)

    @full_precision
    def per_sample(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        """Return the weighted cross-entropy of every sample, (B,)."""
        student_logits, teacher_logits = sample_logits(student, teacher)
        labels = class_labels(target, student_logits)
        with torch.no_grad():  # from log-odds, so that tiny cross-entropies stay distinct in float32
            student_loss, teacher_loss = (
                -F.logsigmoid(split(logits, labels)[0]) for logits in (student_logits, teacher_logits)
            )
            weights = -torch.expm1(-student_loss / (teacher_loss + 1e-7))
        return weights * soft_cross_entropy(student_logits, teacher_logits, self.temperature) * self.temperature**2
