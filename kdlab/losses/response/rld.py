"""RLD: the teacher's confidence for the label, and its ranking of the classes below the label (Sun et al. 2025)."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from kdlab.losses.checks import at_least, class_labels
from kdlab.losses.functional import full_precision
from kdlab.losses.response.logits import PerSample, divergence, sample_logits, split
from kdlab.outputs import Outputs
from kdlab.outputs.task_format import bernoulli_kl


class RLD(PerSample):
    r"""Divergence of the label's probability from the teacher's confidence, and of the classes below the label.

    .. math:: L = \alpha T_c^2 \, \mathrm{KL}\big((p_{\max}, 1 - p_{\max}) \| (q_y, 1 - q_y)\big)
              + \beta T^2 \, \mathrm{KL}(\hat p \| \hat q)

    with :math:`p, q` the softmax of :math:`z / T_c` of teacher and student, and :math:`\hat p, \hat q` the softmax of
    :math:`z / T` over the classes whose teacher logit is below the label's. Where the teacher ranks the label last, no
    class is left and the second part is 0. Averaged over samples. Where the teacher is wrong, the target differs from
    the teacher, so equal networks are no minimum. Computed in float32, or in float64 for float64 logits.

    Recipe: CIFAR-100 alpha = 1, beta = 8, T = 4, T_c = 1, weight 1 with weight 1 on the labels, rising linearly over
    the first 20 epochs; ImageNet beta = 0.5, T = 1, 1 epoch of warm-up.

    Args:
        alpha: weight of the confidence, not negative.
        beta: weight of the classes below the label, not negative.
        temperature: T, positive.
        confidence_temperature: T_c, positive.

    Shapes:
        logits: (B, K) with K of at least 2, the same for both networks.
        target: (B,) integer class labels.

    Raises:
        InputError: a number out of range, networks that differ in classes or batch, labels that are not class indices,
            one class only, an empty batch.

    Paper: W. Sun, D. Chen, S. Lyu, G. Chen, C. Chen, C. Wang, "Knowledge Distillation with Refined Logits", ICCV 2025,
    arXiv 2408.07703. This gives the value of the authors' code, which takes the logarithm of summed probabilities where
    log-odds stay finite.

    >>> import torch
    >>> student, teacher = Outputs(torch.tensor([[2.0, 0.0, 1.0]])), Outputs(torch.tensor([[3.0, 1.0, 0.0]]))
    >>> RLD()(student, teacher, torch.tensor([0]))
    tensor(4.0609)
    """

    needs: ClassVar[tuple[str, ...]] = ("logits", "classes")
    recipe_weight: ClassVar[float] = 1.0
    minimum: ClassVar[float | None] = None

    def __init__(
        self, alpha: float = 1.0, beta: float = 8.0, temperature: float = 4.0, confidence_temperature: float = 1.0
    ) -> None:
        super().__init__()
        self.alpha = at_least("alpha", alpha, 0)
        self.beta = at_least("beta", beta, 0)
        self.temperature = at_least("temperature", temperature, 0, strictly=True)
        self.confidence_temperature = at_least("confidence_temperature", confidence_temperature, 0, strictly=True)

    @full_precision
    def per_sample(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        """Return the weighted sum of both parts for every sample, (B,)."""
        student_logits, teacher_logits = sample_logits(student, teacher)
        labels = class_labels(target, student_logits)
        student_odds, _ = split(student_logits / self.confidence_temperature, labels)
        teacher_odds, _ = split(teacher_logits / self.confidence_temperature, teacher_logits.argmax(1))
        confidence = bernoulli_kl(student_odds, teacher_odds) * self.confidence_temperature**2
        # Finite, so that where no class is left both are uniform and the divergence is 0, not NaN.
        not_below = teacher_logits >= teacher_logits.gather(1, labels[:, None])
        q, p = (
            logits.div(self.temperature).masked_fill(not_below, -1e9) for logits in (student_logits, teacher_logits)
        )
        return self.alpha * confidence + self.beta * self.temperature**2 * divergence(q, p)
