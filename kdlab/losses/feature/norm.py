"""NORM: expanded student map against copies of the teacher's map (Liu et al. 2023)."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdlab.errors import InputError
from kdlab.losses.checks import Pair, map_pairs
from kdlab.losses.functional import full_precision
from kdlab.outputs import Outputs


class NORM(nn.Module):
    r"""Mean squared difference of groups of student channels and the teacher's map, summed over the groups.

    .. math:: L = \sum_{n=1}^{N} \frac{1}{B C_t H W} \| f^s_n - f^t \|^2

    where the student's map of N C_t channels is split into N groups, summed over the layers. The larger map is
    max-pooled to the smaller height and width. 0 when every group equals the teacher. Computed in float32, or in
    float64 for float64 layers.

    The student is :func:`kdlab.models.normed`, whose layer ``expand`` is the one to tap.

    Recipe: CIFAR-100 N = 8, weight 1 times 0.1, 0.5, 1, 0.5, 0.1 from epochs 0, 10, 20, 180, 210, beside weight
    0.0625, 0.125, 0.25 or 0.5 on the labels; ImageNet N = 4, weight 1 times 0.1, 0.5, 0.9, 0.5, 0.1 from epochs 0, 5,
    15, 60, 80.

    Shapes:
        layers: pairs of maps (B, N Ct, Hs, Ws) and (B, Ct, Ht, Wt).
        target: not used.

    Raises:
        InputError: no layers, unequal numbers of layers, layers that are not maps, student channels that are no
            multiple of the teacher's.

    Paper: X. Liu, L. Li, C. Li, A. Yao, "NORM: Knowledge Distillation via N-to-One Representation Matching", ICLR 2023,
    arXiv 2305.13803. Follows the authors' code, which also normalizes the logits of both networks and multiplies them
    by 2.5 before any loss: for the student that is ``logit_scale`` of :func:`kdlab.models.normed`.

    >>> student = Outputs(torch.zeros(1, 2), layers=(torch.arange(4.0).view(1, 4, 1, 1),))
    >>> teacher = Outputs(torch.zeros(1, 2), layers=(torch.zeros(1, 2, 1, 1),))
    >>> NORM()(student, teacher, torch.zeros(1))
    tensor(7.)
    """

    needs: ClassVar[tuple[str, ...]] = ("layers",)
    recipe_weight: ClassVar[float] = 1.0

    @full_precision
    def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        """Return the sum over the layers, a scalar; gradient to the student only."""
        return torch.stack([_match(pair) for pair in map_pairs(student, teacher)]).sum()


def _match(pair: Pair) -> Tensor:
    student_map, teacher_map = pair.student, pair.teacher.detach()
    if student_map.shape[1] % teacher_map.shape[1]:
        raise InputError(
            f"The student's channels must be a multiple of the teacher's, but {pair.shapes}: tap the layer 'expand' of "
            "kdlab.models.normed(...), with the teacher's width."
        )
    size = (min(student_map.shape[2], teacher_map.shape[2]), min(student_map.shape[3], teacher_map.shape[3]))
    student_map, teacher_map = (
        x if x.shape[2:] == size else F.adaptive_max_pool2d(x, size) for x in (student_map, teacher_map)
    )
    copies = student_map.shape[1] // teacher_map.shape[1]
    groups = student_map.reshape(len(student_map), copies, *teacher_map.shape[1:])
    return (groups - teacher_map[:, None]).square().mean() * copies
