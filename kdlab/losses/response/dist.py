"""DIST: correlation of class probabilities within samples and within classes (Huang et al. 2022)."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from kdlab.losses.checks import at_least
from kdlab.losses.functional import full_precision
from kdlab.losses.response.logits import sample_logits
from kdlab.outputs import Outputs


class DIST(nn.Module):
    r"""One minus the Pearson correlation of both networks' class probabilities, over classes and over samples.

    .. math:: L = \beta T^2 \Big(1 - \frac{1}{B} \sum_b \rho(q_{b \cdot}, p_{b \cdot})\Big)
              + \gamma T^2 \Big(1 - \frac{1}{K} \sum_k \rho(q_{\cdot k}, p_{\cdot k})\Big), \qquad
              \rho(u, v) = \frac{\langle u - \bar u, v - \bar v \rangle}
              {\| u - \bar u \|_2 \| v - \bar v \|_2 + 10^{-8}}

    with :math:`q = \mathrm{softmax}(z^s / T)` and :math:`p = \mathrm{softmax}(z^t / T)`. Near 0 when both networks
    give the same probabilities, up to the 1e-8; a linear change of the probabilities changes nothing either, so this is
    no strict minimum. One sample has no spread over samples: the second part is then :math:`\gamma T^2`, without
    gradient. Computed in float32, or in float64 for float64 logits.

    Recipe: CIFAR-100 T = 4, beta = gamma = 1, weight 2 with weight 1 on the labels; ImageNet T = 1, weight 2. The
    paper's beta = gamma = 2 are this weight.

    Args:
        temperature: T, positive.
        beta: weight of the part within samples, not negative.
        gamma: weight of the part within classes, not negative.

    Shapes:
        logits: (B, K), the same for both networks.
        target: not used.

    Raises:
        InputError: a number out of range, networks that differ in classes or batch, an empty batch.

    Paper: T. Huang, S. You, F. Wang, C. Qian, C. Xu, "Knowledge Distillation from A Stronger Teacher", NeurIPS 2022,
    arXiv 2205.10536. This follows the authors' code (image_classification_sota); torchdistill bounds the denominator
    from below instead of adding 1e-8.

    >>> import torch
    >>> student = Outputs(torch.tensor([[2.0, 0.0, 1.0], [0.0, 1.0, 0.0]]))
    >>> teacher = Outputs(torch.tensor([[3.0, 1.0, 0.0], [0.0, 2.0, 1.0]]))
    >>> DIST(temperature=1.0)(student, teacher, torch.tensor([0, 1]))
    tensor(0.7132)
    """

    needs: ClassVar[tuple[str, ...]] = ("logits",)
    recipe_weight: ClassVar[float] = 2.0
    minimum: ClassVar[float | None] = None
    couples_samples: ClassVar[bool] = True

    def __init__(self, temperature: float = 4.0, beta: float = 1.0, gamma: float = 1.0) -> None:
        super().__init__()
        self.temperature = at_least("temperature", temperature, 0, strictly=True)
        self.beta = at_least("beta", beta, 0)
        self.gamma = at_least("gamma", gamma, 0)

    @full_precision
    def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        """Return the weighted sum of both parts, a scalar; gradient to the student only."""
        q, p = (F.softmax(logits / self.temperature, 1) for logits in sample_logits(student, teacher))
        within_samples = 1 - _correlation(q, p).mean()
        within_classes = 1 - _correlation(q.T, p.T).mean()
        return (self.beta * within_samples + self.gamma * within_classes) * self.temperature**2


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    correlation: Tensor = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + 1e-8)
    return correlation
