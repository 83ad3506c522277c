"""Variational information distillation (VID): Gaussian prediction of the teacher's layers (Ahn et al. 2019)."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdlab.losses.checks import at_least, map_pairs
from kdlab.losses.functional import full_precision, pool_to_smaller
from kdlab.losses.lazy import Lazy
from kdlab.outputs import Outputs

EPS = 1e-5


class VID(Lazy):
    r"""Negative log-likelihood of the teacher's map under a normal distribution, summed over the layers.

    .. math:: L = \sum_i \frac{1}{|t_i|} \sum_{bchw} \frac{1}{2} \left[ \frac{(\mu_i(s_i) - t_i)^2}{\sigma^2_{i,c}}
              + \log \sigma^2_{i,c} \right], \qquad \sigma^2 = \log(1 + e^a) + 10^{-5}

    where :math:`|t|` counts all B * C * H * W elements, :math:`\mu` is three 1 x 1 convolutions without bias with ReLU
    between them (Cs to Ct, Ct, Ct channels) and a is one trained number for every channel of the teacher. The larger
    map is first pooled (adaptive average) to the smaller height and width. The value can be negative. Computed in
    float32, or in float64 for float64 layers.

    Recipe: CIFAR-100 weight 1 beside weight 1 on the labels, the ends of all stages but the stem, first variance 5; the
    trained numbers are in the optimizer like all others, with its weight decay.

    Args:
        variance: :math:`\sigma^2` of every channel before training, above 0.0001.

    Shapes:
        layers: pairs of maps (B, Cs, Hs, Ws) and (B, Ct, Ht, Wt).
        target: not used.

    Raises:
        InputError: a variance out of range; no layers, unequal numbers of layers, layers that are not maps.

    Paper: S. Ahn, S. X. Hu, A. Damianou, N. D. Lawrence, Z. Dai, "Variational Information Distillation for Knowledge
    Transfer", CVPR 2019, arXiv 1904.05835. This follows RepDistiller; mdistiller has the same value but never trains
    the variances.

    >>> student = Outputs(torch.zeros(2, 2), layers=(torch.zeros(2, 3, 4, 4),))
    >>> teacher = Outputs(torch.zeros(2, 2), layers=(torch.zeros(2, 5, 4, 4),))
    >>> VID(variance=5.0)(student, teacher, torch.zeros(2))  # log(5) / 2
    tensor(0.8047, grad_fn=<SumBackward0>)
    """

    needs: ClassVar[tuple[str, ...]] = ("layers",)
    recipe_weight: ClassVar[float] = 1.0
    minimum: ClassVar[float | None] = None  # a log-likelihood has no fixed minimum

    def __init__(self, variance: float = 5.0) -> None:
        super().__init__()
        self.variance = at_least("variance", variance, 1e-4, strictly=True)

    def build(self, *channels: tuple[int, int]) -> None:
        """Build a predictor of the teacher for every pair of channels."""
        self.predictors = nn.ModuleList(_Predictor(*each, self.variance) for each in channels)

    @full_precision
    def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        """Return the sum over the layers, a scalar; gradient to the student and to the predictors."""
        pairs = [pool_to_smaller(pair.student, pair.teacher.detach()) for pair in map_pairs(student, teacher)]
        self.materialize(
            pairs[0][0], *((student_map.shape[1], teacher_map.shape[1]) for student_map, teacher_map in pairs)
        )
        return torch.stack([predict(*pair) for predict, pair in zip(self.predictors, pairs, strict=True)]).sum()


class _Predictor(nn.Module):
    """The mean of one teacher layer from a student layer, and a variance for each of its channels."""

    def __init__(self, student: int, teacher: int, variance: float) -> None:
        super().__init__()
        sizes = ((student, teacher), (teacher, teacher), (teacher, teacher))
        first, second, third = (nn.Conv2d(*size, 1, bias=False) for size in sizes)
        self.mean = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), third)
        start = variance - EPS
        self.log_scale = nn.Parameter(torch.full((teacher,), start + math.log(-math.expm1(-start))))

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the mean negative log-likelihood, a scalar."""
        variance = (F.softplus(self.log_scale) + EPS)[:, None, None]
        error: Tensor = (self.mean(student) - teacher).square()
        return (error / variance + variance.log()).mean() / 2
