"""RLD: the teacher's confidence goes to the label, and its order only of classes below the label (Sun et al. 2025)."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from kdlab.losses.checks import at_least, class_labels
from kdlab.losses.functional import full_precision
from kdlab.losses.response.logits import PerSample, binary_divergence, divergence, rows, split
from kdlab.outputs import Outputs


class RLD(PerSample):
    r"""Sample confidence: as sure of the label as the teacher of its best class; and, masked, the classes below it.

    .. math:: L = \alpha T_c^2 \, \mathrm{KL}\big((p_{\max}, 1 - p_{\max}) \| (q_y, 1 - q_y)\big)
              + \beta T^2 \, \mathrm{KL}(\hat p \| \hat q)

    with :math:`p, q` the softmax of :math:`z / T_c` of teacher and student, and :math:`\hat p, \hat q` the softmax of
    :math:`z / T` over the classes whose teacher logit is below the label's. Where the teacher puts the label last, no
    class is left and the second part is 0. Averaged over samples. A wrong teacher asks for another student than itself,
    so equal networks are no minimum. Computed in float32, or in float64 for float64 logits.

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
        """The weighted sum of both parts for every sample, (B,)."""
        ours, theirs = rows(student, teacher)
        labels = class_labels(target, ours)
        our_odds, _ = split(ours / self.confidence_temperature, labels)
        their_odds, _ = split(theirs / self.confidence_temperature, theirs.argmax(1))
        confidence = binary_divergence(our_odds, their_odds) * self.confidence_temperature**2
        # Far below any logit, but finite: where nothing is left both are uniform and the divergence is 0, not NaN.
        not_below = theirs >= theirs.gather(1, labels[:, None])
        q, p = (logits.div(self.temperature).masked_fill(not_below, -1e9) for logits in (ours, theirs))
        return self.alpha * confidence + self.beta * self.temperature**2 * divergence(q, p)
