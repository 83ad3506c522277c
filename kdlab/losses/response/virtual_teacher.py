"""Virtual teacher (Tf-KD): divergence from a hand-made teacher that is confident of every label (Yuan et al. 2020)."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from kdlab.losses.checks import at_least, class_labels, one_of
from kdlab.losses.functional import full_precision
from kdlab.losses.response.logits import PerSample, sample_logits
from kdlab.outputs import Outputs


class VirtualTeacher(PerSample):
    r"""Divergence from a virtual teacher with probability c for the label and the rest uniform; no teacher is read.

    .. math:: p_{b y} = c, \qquad p_{bk} = \frac{1 - c}{K - 1} \; (k \ne y)

    ``form`` selects the softening and the reduction, both without T^2:

    - ``"paper"``: both sides are softened, the sum over classes,

      .. math:: L = \frac{1}{B} \sum_b \sum_k \tilde p_{bk} \log \frac{\tilde p_{bk}}{\tilde q_{bk}}, \qquad
                \tilde p \propto p^{1/T}, \quad \tilde q = \mathrm{softmax}(z^s / T)

    - ``"released"``: the softmax is taken of the probabilities themselves, the student is not softened, and the mean is
      over all elements,

      .. math:: L = \frac{1}{B K} \sum_b \sum_k \tilde p_{bk} \log \frac{\tilde p_{bk}}{q_{bk}}, \qquad
                \tilde p = \mathrm{softmax}(p / T), \quad q = \mathrm{softmax}(z^s)

      With 100 classes and T = 20 that leaves 0.0105 for the label and 0.009995 for every other class: it penalizes
      confidence and is almost uniform.

    Computed in float32, or in float64 for float64 logits.

    Recipe: CIFAR-100 (authors' code, ResNet-18) form ``"released"``, c = 0.99, T = 20, weight 10 with weight 0.9 on the
    labels: that is alpha = 0.1 times a constant ``multiplier`` of 100 outside the loss, and 1 - alpha. A multiplier of
    K undoes the element mean. MobileNetV2 there: T = 40, multiplier 1, alpha = 0.95, so weight 0.95 and 0.05.

    Args:
        correct: c, above 0 and below 1.
        temperature: T, positive.
        form: ``"paper"`` or ``"released"``.

    Shapes:
        logits: (B, K) with K of at least 2, the same for both networks.
        target: (B,) integer class labels.

    Raises:
        InputError: a number out of range, another ``form``; logits of another shape, labels that are not class indices,
            one class only, an empty batch.

    Paper: L. Yuan, F. E. H. Tay, G. Li, T. Wang, J. Feng, "Revisiting Knowledge Distillation via Label Smoothing
    Regularization" (Tf-KD_reg), CVPR 2020, arXiv 1909.11723. Released code: the authors' and that of Zipf's label
    smoothing have ``"released"``; Self-KD-Lib has a third form under this name, which is not implemented.

    >>> student, labels = Outputs(torch.tensor([[2.0, 0.0]])), torch.tensor([0])
    >>> VirtualTeacher(temperature=2.0, form="paper")(student, student, labels)
    tensor(0.0990)
    >>> VirtualTeacher()(student, student, labels)
    tensor(0.2048)
    """

    needs: ClassVar[tuple[str, ...]] = ("logits", "classes")
    recipe_weight: ClassVar[float] = 10.0
    minimum: ClassVar[float | None] = None

    def __init__(
        self, correct: float = 0.99, temperature: float = 20.0, form: Literal["paper", "released"] = "released"
    ) -> None:
        super().__init__()
        self.correct = at_least("correct", correct, 0, strictly=True, below=1)
        self.temperature = at_least("temperature", temperature, 0, strictly=True)
        self.form = one_of("form", form, ("paper", "released"))

    @full_precision
    def per_sample(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        """Return the divergence for every sample, (B,)."""
        logits, _ = sample_logits(student, teacher)
        labels = class_labels(target, logits)
        classes = logits.shape[1]
        as_in_paper = self.form == "paper"
        label_value, other_value = self.correct, (1 - self.correct) / (classes - 1)
        if as_in_paper:  # p^(1/T), normalized, is the softmax of log p / T
            label_value, other_value = math.log(label_value), math.log(other_value)
        teacher_logits = torch.full_like(logits, other_value).scatter(1, labels[:, None], label_value)
        log_p = F.log_softmax(teacher_logits / self.temperature, 1)
        log_q = F.log_softmax(logits / self.temperature if as_in_paper else logits, 1)
        divergence = F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(1)
        return divergence if as_in_paper else divergence / classes
