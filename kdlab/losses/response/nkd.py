"""NKD: target-class cross-entropy and the normalized non-target probabilities (Yang et al. 2023)."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from kdlab.losses.checks import at_least, class_labels
from kdlab.losses.functional import full_precision
from kdlab.losses.response.logits import PerSample, sample_logits, soft_cross_entropy, split
from kdlab.outputs import Outputs


class NKD(PerSample):
    r"""Cross-entropies with the teacher's probabilities: of the label, and among the normalized other classes.

    .. math:: L = -\frac{1}{B} \sum_b \Big( p_{b y} \log q_{b y}
              + \gamma T^2 \sum_{k \ne y} \hat p_{bk} \log \hat q_{bk} \Big)

    with :math:`p, q` the softmax of teacher and student at temperature 1, and :math:`\hat p, \hat q` the softmax of
    :math:`z / T` over the K - 1 classes other than the label y. Both are cross-entropies, not divergences, so equal
    networks do not give 0 and are no minimum. Computed in float32, or in float64 for float64 logits.

    Recipe: CIFAR-100 (authors, ResNet-34 to ResNet-18) gamma = 3.5, T = 3; ImageNet gamma = 1.5, T = 1, the defaults
    as in the code; weight 1 with weight 1 on the labels, no warm-up.

    Args:
        gamma: weight of the other classes, not negative.
        temperature: T of the other classes, positive.

    Shapes:
        logits: (B, K) with K of at least 2, the same for both networks.
        target: (B,) integer class labels.

    Raises:
        InputError: a number out of range, networks that differ in classes or batch, labels that are not class indices,
            one class only, an empty batch.

    Paper: Z. Yang, A. Zeng, Z. Li, T. Zhang, C. Yuan, Y. Li, "From Knowledge Distillation to Self-Knowledge
    Distillation: A Unified Approach with Normalized Loss and Customized Soft Labels", ICCV 2023, arXiv 2303.13005. This
    follows the authors' code (cls_KD); the copy in the code of scale-decoupled distillation keeps the label among the
    other classes.

    >>> import torch
    >>> student, teacher = Outputs(torch.tensor([[2.0, 0.0, 1.0]])), Outputs(torch.tensor([[3.0, 1.0, 0.0]]))
    >>> NKD()(student, teacher, torch.tensor([0]))
    tensor(1.9104)
    """

    needs: ClassVar[tuple[str, ...]] = ("logits", "classes")
    recipe_weight: ClassVar[float] = 1.0
    minimum: ClassVar[float | None] = None

    def __init__(self, gamma: float = 1.5, temperature: float = 1.0) -> None:
        super().__init__()
        self.gamma = at_least("gamma", gamma, 0)
        self.temperature = at_least("temperature", temperature, 0, strictly=True)

    @full_precision
    def per_sample(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        """Return the weighted sum of both parts for every sample, (B,)."""
        student_logits, teacher_logits = sample_logits(student, teacher)
        labels = class_labels(target, student_logits)
        (student_odds, student_others), (teacher_odds, teacher_others) = (
            split(student_logits, labels),
            split(teacher_logits, labels),
        )
        label_term = -teacher_odds.sigmoid() * F.logsigmoid(student_odds)
        other_term = soft_cross_entropy(student_others, teacher_others, self.temperature)
        return label_term + self.gamma * self.temperature**2 * other_term
