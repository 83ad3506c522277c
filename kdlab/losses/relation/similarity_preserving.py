"""Similarity preserving (SP): pairwise similarities of the samples as in the teacher (Tung and Mori 2019)."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdlab.losses.checks import layer_pairs
from kdlab.losses.functional import full_precision
from kdlab.outputs import Outputs


class SimilarityPreserving(nn.Module):
    r"""Mean squared difference of row-normalized similarity matrices of the batch, summed over the layers.

    .. math:: L = \sum_i \frac{1}{B^2} \| \hat G^s_i - \hat G^t_i \|_F^2, \qquad
              G = X X^\top, \quad \hat G_{b} = \frac{G_{b}}{\max(\| G_{b} \|_2, 10^{-12})}

    with X the layer flattened to (B, D); widths may differ. 0 when both networks have the same similarities, and always
    0 for a batch of one. Computed in float32, or in float64 for float64 layers. A sample whose layer is 0 everywhere
    has a row of zeros; the gradient there is very large, as in the released code.

    Recipe: CIFAR-100 weight 3000 beside weight 1 on the labels, the last map before pooling.

    Shapes:
        layers: pairs (B, ...) and (B, ...).
        target: not used.

    Raises:
        InputError: no layers, unequal numbers of layers, unequal batches.

    Paper: F. Tung, G. Mori, "Similarity-Preserving Knowledge Distillation", ICCV 2019, arXiv 1907.09682. Follows
    RepDistiller and mdistiller, which have the paper's L2 rows; torchdistill normalizes rows with the L1 norm.

    >>> student, teacher = torch.eye(2), torch.ones(2, 3)
    >>> SimilarityPreserving()(Outputs(student, (student,)), Outputs(teacher, (teacher,)), torch.zeros(2))
    tensor(0.2929)
    """

    needs: ClassVar[tuple[str, ...]] = ("layers",)
    recipe_weight: ClassVar[float] = 3000.0
    couples_samples: ClassVar[bool] = True

    @full_precision
    def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        """Return the sum over the layers, a scalar; gradient to the student only."""
        pairs = layer_pairs(student, teacher)
        return torch.stack([F.mse_loss(_similarity(p.student), _similarity(p.teacher.detach())) for p in pairs]).sum()


def _similarity(x: Tensor) -> Tensor:
    x = x.flatten(1)
    return F.normalize(x @ x.T, dim=1, eps=1e-12)
