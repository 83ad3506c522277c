"""Neuron selectivity transfer (NST): discrepancy of channel distributions over the image (Huang and Wang 2017)."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdlab.losses.checks import map_pairs
from kdlab.losses.functional import full_precision, pool_to_smaller
from kdlab.outputs import Outputs


class NST(nn.Module):
    r"""Distance of two sets of channels by a polynomial kernel (maximum mean discrepancy), summed over the layers.

    .. math:: L = \sum_i \frac{1}{B} \sum_b \left[ \overline{k(t, t)} + \overline{k(s, s)} - 2 \overline{k(s, t)}
              \right], \qquad k(a, c) = \Big( \frac{a^\top c}{\|a\| \|c\|} \Big)^2

    Every channel of a map is one vector of its H * W values, with a norm of at least :math:`10^{-12}`; the bars average
    over all pairs of channels. The larger map is first pooled (adaptive average) to the smaller height and width;
    channels may differ. 0 when the channels are the same, in any order. Computed in float32, or in float64 for float64
    layers.

    Recipe: CIFAR-100 weight 50 beside weight 1 on the labels, the ends of all stages but the stem.

    Shapes:
        layers: pairs of maps (B, Cs, Hs, Ws) and (B, Ct, Ht, Wt).
        target: not used.

    Raises:
        InputError: no layers, unequal numbers of layers, layers that are not maps.

    Paper: Z. Huang, N. Wang, "Like What You Like: Knowledge Distill via Neuron Selectivity Transfer", arXiv 1707.01219;
    its kernel of degree 2 without offset. Released code (RepDistiller, mdistiller) has the same value from a tensor of
    B * Cs * Ct * H * W numbers; here a matrix product needs B * Cs * Ct.

    >>> student = Outputs(torch.zeros(1, 2), layers=(torch.tensor([[[[1.0, 0.0]]]]),))
    >>> teacher = Outputs(torch.zeros(1, 2), layers=(torch.tensor([[[[0.0, 1.0]]]]),))
    >>> NST()(student, teacher, torch.zeros(1))
    tensor(2.)
    """

    needs: ClassVar[tuple[str, ...]] = ("layers",)
    recipe_weight: ClassVar[float] = 50.0

    @full_precision
    def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        """Return the sum over the layers, a scalar; gradient to the student only."""
        pairs = [pool_to_smaller(pair.student, pair.teacher.detach()) for pair in map_pairs(student, teacher)]
        return torch.stack([_discrepancy(_channels(s), _channels(t)) for s, t in pairs]).sum()


def _channels(x: Tensor) -> Tensor:
    return F.normalize(x.flatten(2), dim=2, eps=1e-12)


def _discrepancy(student: Tensor, teacher: Tensor) -> Tensor:
    return _kernel(teacher, teacher) + _kernel(student, student) - 2 * _kernel(student, teacher)


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b.transpose(1, 2)).square().mean()
