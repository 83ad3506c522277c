"""Flow of the solution procedure (FSP): Gram matrices of consecutive layers (Yim et al. 2017)."""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdlab.errors import InputError
from kdlab.losses.checks import map_pairs
from kdlab.losses.functional import full_precision, pool_to_smaller
from kdlab.outputs import Outputs


class FSP(nn.Module):
    r"""Mean squared difference of the products of consecutive layers, summed over the n - 1 consecutive pairs.

    .. math:: L = \sum_i \frac{1}{B C_i C_{i+1}} \| G^s_i - G^t_i \|^2, \qquad
              G_i = \frac{1}{H W} \sum_{hw} f_i(\cdot, hw) \, f_{i+1}(\cdot, hw)^\top

    Of two consecutive maps the larger is first pooled (adaptive average) to the smaller height and width. Student and
    teacher need equal channels at every layer; their maps may differ in size. 0 when both networks give the same maps.
    Computed in float32, or in float64 for float64 layers.

    Recipe: weight 1 for 30 epochs without labels, on the stem and the ends of all stages; then 240 epochs of CIFAR-100
    on the labels alone. Released code has a weight of 50 for the second stage, where it multiplies 0.

    Shapes:
        layers: at least two pairs of maps (B, C, Hs, Ws) and (B, C, Ht, Wt), from shallow to deep.
        target: not used.

    Raises:
        InputError: fewer than two layers, unequal numbers of layers, layers that are not maps, other channels.

    Paper: J. Yim, D. Joo, J. Bae, J. Kim, "A Gift from Knowledge Distillation: Fast Optimization, Network Minimization
    and Transfer Learning", CVPR 2017. This follows RepDistiller, with average pooling and the element mean.

    >>> layers = torch.ones(1, 1, 4, 4), torch.ones(1, 2, 2, 2)
    >>> student, teacher = Outputs(torch.zeros(1, 2), layers), Outputs(torch.zeros(1, 2), (layers[0], 3 * layers[1]))
    >>> FSP()(student, teacher, torch.zeros(1))
    tensor(4.)
    """

    needs: ClassVar[tuple[str, ...]] = ("layers",)
    recipe_weight: ClassVar[float] = 1.0

    @full_precision
    def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        """Return the sum over consecutive layers, a scalar; gradient to the student only."""
        pairs = map_pairs(student, teacher)
        if len(pairs) < 2:
            raise InputError("FSP compares consecutive layers: name at least two, from shallow to deep.")
        for pair in pairs:
            if pair.student.shape[1] != pair.teacher.shape[1]:
                raise InputError(f"FSP needs equal channels, but {pair.shapes}: tap layers of equal width.")
        student_products = _products([pair.student for pair in pairs])
        teacher_products = _products([pair.teacher.detach() for pair in pairs])
        return torch.stack([F.mse_loss(a, b) for a, b in zip(student_products, teacher_products, strict=True)]).sum()


def _products(layers: list[Tensor]) -> list[Tensor]:
    """Return the products (B, C, D) of every two consecutive maps of C and D channels."""
    pooled = [pool_to_smaller(*pair) for pair in pairwise(layers)]
    return [a.flatten(2) @ b.flatten(2).transpose(1, 2) / a[0, 0].numel() for a, b in pooled]
