"""Label smoothing: cross-entropy with labels mixed with the uniform distribution (Szegedy et al. 2016)."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from kdlab.losses.checks import at_least, class_labels, one_of
from kdlab.losses.functional import full_precision
from kdlab.losses.response.logits import PerSample, sample_logits
from kdlab.outputs import Outputs


class LabelSmoothing(PerSample):
    r"""Cross-entropy of the student's class probabilities with smoothed labels; the teacher is not read.

    .. math:: L = -\frac{1}{B} \sum_b \sum_k u_{bk} \log q_{bk}, \qquad q = \mathrm{softmax}(z^s)

    where u depends on ``over``:

    - ``"all"``: epsilon / K on every class, and 1 - epsilon more on the label;
    - ``"others"``: 1 - epsilon on the label and epsilon / (K - 1) on every other class.

    ``"others"`` with epsilon is ``"all"`` with epsilon K / (K - 1). Up to a constant it is 1 - epsilon times the labels
    plus epsilon times the divergence from a uniform teacher, so it is the baseline for methods without a teacher.
    Computed in float32, or in float64 for float64 logits.

    Recipe: it replaces the loss on the labels: weight 1 with weight 0 on the labels. CIFAR-100 epsilon = 0.1 in the
    baselines of Tf-KD and of Zipf's label smoothing, there with ``"others"``.

    Args:
        epsilon: the weight of the smoothing, at least 0 and below 1.
        over: ``"all"`` or ``"others"``.

    Shapes:
        logits: (B, K), the same for both networks; K of at least 2 for ``"others"``.
        target: (B,) integer class labels.

    Raises:
        InputError: epsilon out of range, another ``over``; logits of another shape, labels that are not class indices,
            one class only, an empty batch.

    Paper: C. Szegedy, V. Vanhoucke, S. Ioffe, J. Shlens, Z. Wojna, "Rethinking the Inception Architecture for Computer
    Vision", CVPR 2016, arXiv 1512.00567. ``"all"`` is the paper's and PyTorch's; the released codes of Tf-KD and Zipf's
    label smoothing have ``"others"``.

    >>> student = Outputs(torch.tensor([[2.0, 0.0]]))
    >>> LabelSmoothing()(student, Outputs(torch.zeros(1, 2)), torch.tensor([0]))
    tensor(0.2269)
    """

    needs: ClassVar[tuple[str, ...]] = ("logits", "classes")
    recipe_weight: ClassVar[float] = 1.0
    minimum: ClassVar[float | None] = None

    def __init__(self, epsilon: float = 0.1, over: Literal["all", "others"] = "all") -> None:
        super().__init__()
        self.epsilon = at_least("epsilon", epsilon, 0, below=1)
        self.over = one_of("over", over, ("all", "others"))

    @full_precision
    def per_sample(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        """Return the cross-entropy of every sample, (B,)."""
        logits, _ = sample_logits(student, teacher)
        labels = class_labels(target, logits)
        if self.over == "all":
            return F.cross_entropy(logits, labels, reduction="none", label_smoothing=self.epsilon)
        spread = torch.full_like(logits, self.epsilon / (logits.shape[1] - 1))
        smoothed = spread.scatter(1, labels[:, None], 1 - self.epsilon)
        return -(smoothed * F.log_softmax(logits, 1)).sum(1)
