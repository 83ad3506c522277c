"""Labels: cross-entropy with the true labels as one more knowledge, on a view or with a schedule of its own."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from kdlab.losses.checks import class_labels
from kdlab.losses.functional import full_precision
from kdlab.losses.response.logits import PerSample, rows
from kdlab.outputs import Outputs


class Labels(PerSample):
    r"""Cross-entropy of the student's class probabilities with the true labels; the teacher's answer does not matter.

    .. math:: L = -\frac{1}{B} \sum_{b=1}^{B} \log q_{b y_b}, \qquad q = \mathrm{softmax}(z^s)

    The labels of the batch itself are the task, with its own weight; this is for labels elsewhere, such as on another
    view (:class:`~kdlab.losses.OnView`). Computed in float32, or in float64 for float64 logits.

    Recipe: CIFAR-100 multi-level logit distillation puts it on the strong view with weight 0.1.

    Shapes:
        logits: (B, K), the same for both networks.
        target: (B,) integer class labels.

    Raises:
        InputError: logits of another form, labels that are not class indices, an empty batch.

    Paper: none of its own.

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
        """The cross-entropy of every sample, (B,)."""
        ours, _ = rows(student, teacher)
        return F.cross_entropy(ours, class_labels(target, ours), reduction="none")
