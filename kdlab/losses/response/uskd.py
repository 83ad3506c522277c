"""USKD: NKD without a teacher, with targets from the student's logits and a weak head (Yang et al. 2023)."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from kdlab.errors import InputError
from kdlab.losses.checks import at_least, class_labels
from kdlab.losses.functional import full_precision
from kdlab.losses.lazy import Lazy
from kdlab.losses.response.logits import sample_logits, split
from kdlab.outputs import Outputs

SMOOTHING = 0.1  # of the weak head's labels


class USKD(Lazy):
    r"""Cross-entropies of the label with a soft weight, of the other classes with Zipf's law, and of a weak head.

    .. math:: L = -\frac{1}{B} \sum_b \Big( \alpha \, P_b \log q_{b y}
              + \beta \sum_{k \ne y} \zeta_{bk} \log \hat q_{bk}
              + \mu \sum_k u_{bk} \log w_{bk} \Big), \qquad
              P_b = q_{b y}^2 + 1 - \frac{1}{B} \sum_{b'} q_{b' y}^2

    with q the softmax of the student's logits, :math:`\hat q` the one over the K - 1 classes other than the label y,
    and w that of the weak head: a trained linear layer on the student's tapped layer, averaged over its positions. u is
    0.9 on the label plus 0.1 / K on every class. :math:`\zeta_{bk} \propto 1 / r_{bk}`, normalized over the other
    classes, where r is the place of class k among all K by

    .. math:: \frac{w_{bk}}{1 - w_{b y} + 10^{-6}} + \frac{\log q_{bk}}{1 - \log q_{b y} + 10^{-6}}

    (of equal ones the lower class comes first). P and :math:`\zeta` are targets: no gradient passes through them. The
    weak head's term trains the layers below the tap too; the head is discarded after the training. No teacher is
    read. Computed in float32, or in float64 if an input or weight is float64.

    Recipe: weight 1 with weight 1 on the labels; ResNet-18: the end of the last stage but one, CIFAR-100
    alpha = beta = mu = 0.1; ImageNet alpha = 1, beta = 0.1, mu = 0.005, the defaults as in the code.

    Args:
        alpha: weight of the label, not negative.
        beta: weight of the other classes, not negative.
        mu: weight of the weak head, not negative.

    Shapes:
        logits: (B, K) with K of at least 2, the same for both networks.
        student_layers: one map (B, C, H, W) or vector (B, C).
        target: (B,) integer class labels.

    Raises:
        InputError: a number out of range; networks that differ in classes or batch, labels that are not class indices,
            one class only, an empty batch; no layer, several, or one that is neither map nor vector.

    Paper: Z. Yang, A. Zeng, Z. Li, T. Zhang, C. Yuan, Y. Li, "From Knowledge Distillation to Self-Knowledge
    Distillation: A Unified Approach with Normalized Loss and Customized Soft Labels", ICCV 2023, arXiv 2303.13005. This
    follows the authors' code (cls_KD) for integer labels: it ranks by the logarithm of the student's probability, where
    the paper has the probability; its support for mixed labels is not implemented.

    >>> import torch
    >>> student = Outputs(torch.tensor([[2.0, 0.0, 1.0]]), layers=(torch.rand(1, 8, 4, 4),))
    >>> loss = USKD(alpha=1.0, beta=0.0, mu=0.0)
    >>> loss(student, student, torch.tensor([0])).detach()
    tensor(0.4076)
    >>> [(name, tuple(value.shape)) for name, value in loss.named_parameters()]
    [('weak_head.weight', (3, 8)), ('weak_head.bias', (3,))]
    """

    needs: ClassVar[tuple[str, ...]] = ("logits", "student_layers", "classes")
    recipe_weight: ClassVar[float] = 1.0
    minimum: ClassVar[float | None] = None
    layer_count: ClassVar[int] = 1
    true_gradient: ClassVar[bool] = False  # the label's weight P is detached
    couples_samples: ClassVar[bool] = True

    def __init__(self, alpha: float = 1.0, beta: float = 0.1, mu: float = 0.005) -> None:
        super().__init__()
        self.alpha = at_least("alpha", alpha, 0)
        self.beta = at_least("beta", beta, 0)
        self.mu = at_least("mu", mu, 0)

    def build(self, width: int, classes: int) -> None:
        """Build the weak head."""
        self.weak_head = nn.Linear(width, classes)

    @full_precision
    def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        """Return the weighted sum of the three parts, a scalar; gradient to the student and to the weak head."""
        logits, _ = sample_logits(student, teacher)
        labels = class_labels(target, logits)
        _, others = split(logits, labels)
        features = _pooled(student)
        self.materialize(features, features.shape[1], logits.shape[1])
        weak, log_q = self.weak_head(features), F.log_softmax(logits, 1)
        log_label = log_q.gather(1, labels[:, None]).squeeze(1)
        squares = log_label.detach().exp().square()
        label_term = -((squares + 1 - squares.mean()) * log_label).mean()
        zipf = _zipf_labels(weak.detach().softmax(1), log_q.detach(), labels)
        other_term = -(zipf * F.log_softmax(others, 1)).sum(1).mean()
        weak_term = F.cross_entropy(weak, labels, label_smoothing=SMOOTHING)
        return self.alpha * label_term + self.beta * other_term + self.mu * weak_term


def _zipf_labels(weak: Tensor, log_q: Tensor, labels: Tensor) -> Tensor:
    """Return the other classes' soft labels (B, K - 1), by the ranks of their scores among all classes."""
    weak_label, log_label = (each.gather(1, labels[:, None]) for each in (weak, log_q))
    scores = weak / (1 - weak_label + 1e-6) + log_q / (1 - log_label + 1e-6)
    places = scores.argsort(stable=True, dim=1, descending=True).argsort(1)
    _, weights = split(1 / (places + 1).to(log_q.dtype), labels)
    return weights / weights.sum(1, keepdim=True)


def _pooled(student: Outputs) -> Tensor:
    """Return the student's only tapped layer as vectors (B, C)."""
    if not student.layers:
        raise InputError("USKD reads one layer of the student and none is tapped: set student_layers.")
    layer = student.layers[0]
    if len(student.layers) != 1 or layer.dim() not in (2, 4) or len(layer) != len(student.logits) or not layer.numel():
        shapes = ", ".join(str(tuple(each.shape)) for each in student.layers)
        raise InputError(f"USKD reads one map (B, C, H, W) or vector (B, C) of the batch, not {shapes}.")
    return layer.mean((2, 3)) if layer.dim() == 4 else layer
