"""Labels: cross-entropy with the true labels as one more knowledge, on a view or with its own schedule."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from kdlab.losses.checks import class_labels
from kdlab.losses.functional import full_precision
from kdlab.losses.response.logits import PerSample, sample_logits
from kdlab.outputs import Outputs


class Labels(PerSample):
    r"""Cross-entropy of the student's class probabilities with the true labels; the teacher is not read.

    .. math:: L = -\frac{1}{B} \sum_{b=1}^{B} \log q_{b y_b}, \qquad q = \mathrm{softmax}(z^s)

    The task loss covers the labels of the batch itself; this loss is for labels elsewhere, such as on another view
    (:class:`~kdlab.losses.OnView`). Computed in float32, or in float64 for float64 logits.

    Recipe: CIFAR-100 multi-level logit distillation puts it on the strong view with weight 0.1.

    Shapes:
        logits: (B, K), the same for both networks.
        target: (B,) integer class labels.

    Raises:
        InputError: logits of another shape, labels that are not class indices, an empty batch.

    Paper: none.

    >>> import torch
    >>> student = Outputs(torch.tensor([[2.0, 0.0]]))
    >>> Labels()(student, Outputs(torch.zeros(1, 2)), torch.tensor([0]))
    tensor(0.1269)
    """

    method: ClassVar[str] = "labels"
    paper: ClassVar[str] = ""
    needs: ClassVar[tuple[str, ...]] = ("logits", "classes")
    recipe_weight: ClassVar[float] = 0.1
    minimum: ClassVar[float | None] = None

    @full_precision
    def per_sample(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        """Return the cross-entropy of every sample, (B,)."""
        logits, _ = sample_logits(student, teacher)
        return F.cross_entropy(logits, class_labels(target, logits), reduction="none")
