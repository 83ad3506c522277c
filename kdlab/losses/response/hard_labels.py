"""Hard distillation (DeiT): the teacher's predicted class as a second label (Touvron et al. 2021)."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from kdlab.losses.functional import full_precision
from kdlab.losses.response.logits import PerSample, sample_logits
from kdlab.outputs import Outputs


class HardLabels(PerSample):
    r"""Cross-entropy of the student's class probabilities with the teacher's predicted class.

    .. math:: L = -\frac{1}{B} \sum_{b=1}^{B} \log q_{b t_b}, \qquad t_b = \arg\max_k z^t_{bk}, \quad
              q = \mathrm{softmax}(z^s)

    Equal networks are no minimum: a more confident student has a lower value. Computed in float32, or in float64 for
    float64 logits.

    Recipe: ImageNet weight 0.5 with weight 0.5 on the labels, the teacher on the same augmented image; the same here
    for CIFAR-100, where the paper has no from-scratch setting.

    Shapes:
        logits: (B, K), the same for both networks.
        target: not used.

    Raises:
        InputError: the networks differ in classes or batch, logits of another shape, an empty batch.

    Paper: H. Touvron, M. Cord, M. Douze, F. Massa, A. Sablayrolles, H. Jégou, "Training data-efficient image
    transformers & distillation through attention", ICML 2021, arXiv 2012.12877. Released code (deit) has the same
    value, on the logits of a separate distillation token; here the student has one output.

    >>> import torch
    >>> student, teacher = Outputs(torch.tensor([[2.0, 0.0]])), Outputs(torch.tensor([[1.0, 3.0]]))
    >>> HardLabels()(student, teacher, torch.tensor([0]))
    tensor(2.1269)
    """

    needs: ClassVar[tuple[str, ...]] = ("logits",)
    recipe_weight: ClassVar[float] = 0.5
    minimum: ClassVar[float | None] = None

    @full_precision
    def per_sample(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        """Return the cross-entropy of every sample, (B,)."""
        student_logits, teacher_logits = sample_logits(student, teacher)
        return F.cross_entropy(student_logits, teacher_logits.argmax(1), reduction="none")
