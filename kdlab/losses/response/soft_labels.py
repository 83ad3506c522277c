"""Soft labels: cross-entropy with the class probabilities of a teacher or an earlier model (Furlanello et al. 2018)."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from kdlab.losses.checks import at_least
from kdlab.losses.functional import full_precision
from kdlab.losses.response.logits import PerSample, sample_logits
from kdlab.outputs import Outputs


class SoftLabels(PerSample):
    r"""Cross-entropy of the student's class probabilities with the teacher's softened ones.

    .. math:: L = -\frac{1}{B} \sum_{b=1}^{B} \sum_{k=1}^{K} p_{bk} \log q_{bk}, \qquad
              p = \mathrm{softmax}(z^t / T), \quad q = \mathrm{softmax}(z^s)

    without a factor T^2. The teacher may be an earlier generation of the network, its last snapshot, or its predictions
    for the same samples an epoch ago; (1 - a) times the labels plus a times this is then the cross-entropy with the
    labels mixed with those predictions. A sample bank initialized with labels (logits 0 for the label and -10^4
    elsewhere) gives exactly the cross-entropy with labels (at T = 1). The gradient is that of the divergence, but equal
    networks give the teacher's entropy, not 0. Computed in float32, or in float64 for float64 logits.

    Recipe: born-again networks T = 1, weight 1, with weight 1 or 0 on the labels. PS-KD (CIFAR-100) T = 1,
    weight a = 0.8 (e + 1) / E in epoch e = 0, 1, ... of E, with weight 1 - a on the labels. Snapshot distillation
    softens the teacher alone, T above 1.

    Args:
        temperature: T, of the teacher alone; positive.

    Shapes:
        logits: (B, K), the same for both networks.
        target: not used.

    Raises:
        InputError: the temperature is not positive; networks that differ in classes or batch; an empty batch.

    Paper: T. Furlanello, Z. C. Lipton, M. Tschannen, L. Itti, A. Anandkumar, "Born-Again Neural Networks", ICML 2018,
    arXiv 1805.04770; C. Yang, L. Xie, C. Su, A. L. Yuille, "Snapshot Distillation: Teacher-Student Optimization in One
    Generation", CVPR 2019, arXiv 1812.00123; K. Kim, B. Ji, D. Yoon, S. Hwang, "Self-Knowledge Distillation with
    Progressive Refinement of Targets" (PS-KD), ICCV 2021, arXiv 2006.12000. With the labels as above this is the value
    of PS-KD's released code.

    >>> import torch
    >>> student, teacher = Outputs(torch.tensor([[2.0, 0.0]])), Outputs(torch.tensor([[0.0, 2.0]]))
    >>> SoftLabels()(student, teacher, torch.tensor([0]))
    tensor(1.8885)
    """

    needs: ClassVar[tuple[str, ...]] = ("logits",)
    recipe_weight: ClassVar[float] = 0.8
    minimum: ClassVar[float | None] = None  # the teacher's entropy, which depends on the batch

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        self.temperature = at_least("temperature", temperature, 0, strictly=True)

    @full_precision
    def per_sample(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        """Return the cross-entropy of every sample, (B,)."""
        student_logits, teacher_logits = sample_logits(student, teacher)
        return -(F.softmax(teacher_logits / self.temperature, 1) * F.log_softmax(student_logits, 1)).sum(1)
