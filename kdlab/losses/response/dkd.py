"""Decoupled knowledge distillation (DKD): separate weights for target and other classes (Zhao et al. 2022)."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from kdlab.losses.checks import at_least, class_labels
from kdlab.losses.functional import full_precision
from kdlab.losses.response.logits import PerSample, divergence, sample_logits, split
from kdlab.outputs import Outputs
from kdlab.outputs.task_format import bernoulli_kl


class DKD(PerSample):
    r"""Weighted divergences of label versus other classes, and among the other classes.

    .. math:: L = \alpha \, T^2 \, \mathrm{KL}(b^t \| b^s) + \beta \, T^2 \, \mathrm{KL}(\hat p^t \| \hat p^s)

    with :math:`p = \mathrm{softmax}(z / T)`, :math:`b = (p_y, 1 - p_y)` and :math:`\hat p` the softmax over the K - 1
    classes other than the label y; both summed over classes and averaged over samples. 0 when both networks give the
    same probabilities. With K = 2 the second part is always 0. Computed in float32, or in float64
    for float64 logits.

    Recipe: CIFAR-100 alpha = 1, T = 4, beta = 8 (resnet32x4 to resnet8x4 and to ShuffleNets), 6 (WRN and VGG pairs) or
    2 (resnet56 to resnet20, resnet110 to resnet32), weight 1 with weight 1 on the labels, rising linearly over the
    first 20 epochs; ImageNet T = 1, beta = 0.5 (ResNet-34 to 18) or 2 (ResNet-50 to MobileNetV1), 1 epoch of warm-up.

    Args:
        alpha: weight of the target-class part, not negative.
        beta: weight of the other-classes part, not negative.
        temperature: T, positive.

    Shapes:
        logits: (B, K), the same for both networks.
        target: (B,) integer class labels.

    Raises:
        InputError: a number out of range; networks that differ in classes or batch; labels that are not class indices.

    Paper: B. Zhao, Q. Cui, R. Song, Y. Qiu, J. Liang, "Decoupled Knowledge Distillation", CVPR 2022, arXiv 2203.08679.
    Released code (mdistiller) has the same value but takes the logarithm of summed probabilities, which gives NaN for
    large logits in float32; here both parts come from ``logsumexp`` and stay finite.

    >>> import torch
    >>> student, teacher = Outputs(torch.tensor([[2.0, 0.0, 1.0]])), Outputs(torch.tensor([[3.0, 1.0, 0.0]]))
    >>> DKD(alpha=1.0, beta=8.0, temperature=4.0)(student, teacher, torch.tensor([0]))
    tensor(4.1034)
    """

    needs: ClassVar[tuple[str, ...]] = ("logits", "classes")
    recipe_weight: ClassVar[float] = 1.0

    def __init__(self, alpha: float = 1.0, beta: float = 8.0, temperature: float = 4.0) -> None:
        super().__init__()
        self.alpha = at_least("alpha", alpha, 0)
        self.beta = at_least("beta", beta, 0)
        self.temperature = at_least("temperature", temperature, 0, strictly=True)

    @full_precision
    def per_sample(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        """Return the weighted sum of both parts for every sample, (B,)."""
        student_logits, teacher_logits = sample_logits(student, teacher)
        labels = class_labels(target, student_logits)
        student_odds, student_others = split(student_logits / self.temperature, labels)
        teacher_odds, teacher_others = split(teacher_logits / self.temperature, labels)
        parts = self.alpha * bernoulli_kl(student_odds, teacher_odds) + self.beta * divergence(
            student_others, teacher_others
        )
        return parts * self.temperature**2
