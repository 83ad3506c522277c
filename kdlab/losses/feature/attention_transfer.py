"""Attention transfer (AT): spatial attention maps of layers (Zagoruyko and Komodakis 2017)."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdlab.losses.checks import at_least, map_pairs
from kdlab.losses.functional import full_precision, pool_to_smaller
from kdlab.outputs import Outputs


class AttentionTransfer(nn.Module):
    r"""Mean squared difference of normalized spatial attention maps, summed over the layers.

    .. math:: L = \sum_i \frac{1}{B H_i W_i} \sum_{b} \| A(f^s_{i,b}) - A(f^t_{i,b}) \|^2, \qquad
              A(f) = \frac{a}{\max(\| a \|_2, 10^{-12})}, \quad a_{hw} = \frac{1}{C} \sum_c |f_{chw}|^p

    The larger map is first pooled (adaptive average) to the smaller height and width; channels may differ. 0 when both
    networks are active in the same places. Computed in float32, or in float64 for float64 layers.

    Recipe: CIFAR-100 weight 1000 beside weight 1 on the labels, the ends of all stages but the stem, p = 2.

    Args:
        power: p, at least 1.

    Shapes:
        layers: pairs of maps (B, Cs, Hs, Ws) and (B, Ct, Ht, Wt).
        target: not used.

    Raises:
        InputError: a power below 1, no layers, unequal numbers of layers, layers that are not maps.

    Paper: S. Zagoruyko, N. Komodakis, "Paying More Attention to Attention: Improving the Performance of Convolutional
    Neural Networks via Attention Transfer", ICLR 2017, arXiv 1612.03928, where the norm is not squared and halved. This
    follows the authors' code (and RepDistiller's and mdistiller's): the element mean of squares.

    >>> student = Outputs(torch.zeros(1, 2), layers=(torch.ones(1, 3, 2, 2),))
    >>> teacher = Outputs(torch.zeros(1, 2), layers=(torch.eye(2).view(1, 1, 2, 2),))
    >>> AttentionTransfer()(student, teacher, torch.zeros(1))
    tensor(0.1464)
    """

    needs: ClassVar[tuple[str, ...]] = ("layers",)
    recipe_weight: ClassVar[float] = 1000.0

    def __init__(self, power: float = 2) -> None:
        super().__init__()
        self.power = at_least("power", power, 1)

    @full_precision
    def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        """Return the sum over the layers, a scalar; gradient to the student only."""
        pairs = [pool_to_smaller(pair.student, pair.teacher.detach()) for pair in map_pairs(student, teacher)]
        return torch.stack([F.mse_loss(self._attention(s), self._attention(t)) for s, t in pairs]).sum()

    def _attention(self, x: Tensor) -> Tensor:
        return F.normalize(x.abs().pow(self.power).mean(1).flatten(1), eps=1e-12)
