"""Knowledge review (ReviewKD): layers fused with all deeper ones match the teacher's (Chen et al. 2021)."""

from __future__ import annotations

from collections import OrderedDict
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdlab.errors import InputError
from kdlab.losses.checks import at_least, map_pairs
from kdlab.losses.feature.connectors import BatchNorm
from kdlab.losses.functional import full_precision
from kdlab.losses.lazy import Lazy
from kdlab.outputs import Outputs


class ReviewKD(Lazy):
    r"""Hierarchical distance of the fused student layers to the teacher layers, summed over the layers.

    .. math:: L = \sum_{i=1}^{n} \mathrm{HCL}(o_i, t_i), \qquad o_i = V_i(y_i), \qquad
              y_i = a_i \odot U_i(s_i) + b_i \odot y_{i+1}, \qquad y_n = U_n(s_n)

    with n layers from shallow to deep. U is a 1 x 1 convolution to M channels and V a 3 x 3 one to the teacher's, both
    without bias and with batch normalization; :math:`(a, b)` are two maps, the sigmoid of a 1 x 1 convolution of both
    terms. :math:`y_{i+1}` is resized to :math:`s_i`, and :math:`y_i` to :math:`t_i` (nearest neighbors). M is
    ``middle`` or the channels of the deepest student layer, whichever is less. HCL is
    :func:`hierarchical_distance`. Computed in float32, or in float64 for float64 layers.

    Recipe: CIFAR-100 weight 5 beside weight 1 on the labels (resnet32x4 to resnet8x4, WRN pairs, ShuffleNetV1), 8 (to
    ShuffleNetV2), 0.6 (resnet56 to resnet20) or 1 (resnet110 to resnet32), rising linearly over the first 20 epochs;
    the ends of all stages but the stem, the teacher's before their last ReLU, and the embedding. ImageNet weight 1
    (ResNet-34 to 18) or 8 (ResNet-50 to MobileNetV1), 1 epoch of warm-up, both sides before their last ReLU.

    Args:
        middle: upper bound of M, at least 1.
        embedding: use both networks' embeddings as an additional, deepest layer of size 1 x 1.

    Shapes:
        layers: pairs of maps (B, Cs, Hs, Ws) and (B, Ct, Ht, Wt), from shallow to deep.
        embedding: (B, Ds) and (B, Dt), unless ``embedding=False``.
        target: not used.

    Raises:
        InputError: ``middle`` out of range; no layers, unequal numbers of layers, layers that are not maps; a network
            without an embedding where one is needed.

    Paper: P. Chen, S. Liu, H. Zhao, J. Jia, "Distilling Knowledge via Knowledge Review", CVPR 2021, arXiv 2104.09044.
    Follows the authors' code and mdistiller. The authors' CIFAR teacher normalizes with the batch's statistics
    (``teacher_batchnorm="batch"``).

    >>> student = Outputs(torch.zeros(2, 2), layers=(torch.rand(2, 3, 8, 8), torch.rand(2, 6, 4, 4)))
    >>> teacher = Outputs(torch.zeros(2, 2), layers=(torch.rand(2, 5, 8, 8), torch.rand(2, 7, 4, 4)))
    >>> loss = ReviewKD(embedding=False)
    >>> loss(student, teacher, torch.zeros(2)).shape
    torch.Size([])
    >>> [fusion.enter.conv.weight.shape[:2] for fusion in loss.fusions]
    [torch.Size([6, 3]), torch.Size([6, 6])]
    """

    recipe_weight: ClassVar[float] = 5.0
    minimum: ClassVar[float | None] = None  # fresh convolutions are not the identity

    def __init__(self, middle: int = 512, embedding: bool = True) -> None:
        super().__init__()
        self.middle = int(at_least("middle", middle, 1))
        self.embedding = embedding

    @property
    def needs(self) -> tuple[str, ...]:
        """Return layers, and the embedding if it is one of them."""
        return ("layers", "embedding") if self.embedding else ("layers",)

    def build(self, *channels: tuple[int, int]) -> None:
        """Build one fusion for every pair of channels."""
        middle = min(self.middle, channels[-1][0])
        last = len(channels) - 1
        self.fusions = nn.ModuleList(
            Fusion(student, middle, teacher, deepest=i == last) for i, (student, teacher) in enumerate(channels)
        )

    @full_precision
    def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        """Return the sum over the layers, a scalar; gradient to the student and to the fusions."""
        pairs = [(pair.student, pair.teacher.detach()) for pair in map_pairs(student, teacher)]
        if self.embedding:
            pairs.append((_as_map(student, "student"), _as_map(teacher, "teacher").detach()))
            if len(pairs[-1][0]) != len(pairs[-1][1]) or len(pairs[0][0]) != len(pairs[-1][0]):
                raise InputError("Layers and embeddings must be of one batch.")
        self.materialize(
            pairs[0][0], *((student_map.shape[1], teacher_map.shape[1]) for student_map, teacher_map in pairs)
        )
        deeper, values = None, []
        for fusion, (student_map, teacher_map) in reversed(list(zip(self.fusions, pairs, strict=True))):
            out, deeper = fusion(student_map, deeper, teacher_map.shape[2:])
            values.append(hierarchical_distance(out, teacher_map))
        return torch.stack(values).sum()


class Fusion(nn.Module):
    """One student layer, fused with the deeper ones, in the shape of a teacher layer (the paper's ABF)."""

    def __init__(self, student: int, middle: int, teacher: int, *, deepest: bool) -> None:
        super().__init__()
        self.enter = _convolution(student, middle, 1)
        self.leave = _convolution(middle, teacher, 3)
        self.attention = None if deepest else nn.Conv2d(2 * middle, 2, 1)

    def forward(self, x: Tensor, deeper: Tensor | None, size: torch.Size) -> tuple[Tensor, Tensor]:
        """Return the map to compare, (B, teacher, *size), and that to fuse with the next layer, (B, middle, *size)."""
        fused = self.enter(x)
        if self.attention is not None and deeper is not None:
            deeper = F.interpolate(deeper, fused.shape[2:], mode="nearest")
            weights = self.attention(torch.cat([fused, deeper], 1)).sigmoid()
            fused = fused * weights[:, :1] + deeper * weights[:, 1:]
        if fused.shape[2:] != size:
            fused = F.interpolate(fused, size, mode="nearest")
        return self.leave(fused), fused


def hierarchical_distance(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Return the paper's hierarchical context loss (HCL) of two maps of one shape (B, C, H, W).

    Mean squared difference of the maps, with weight 1, and of the maps pooled (adaptive average) to 4 x 4, 2 x 2 and
    1 x 1 as far as these are smaller than H, with weights 1/2, 1/4, 1/8 in the order used; divided by the sum of the
    weights.

    >>> hierarchical_distance(torch.ones(2, 3, 8, 8), torch.zeros(2, 3, 8, 8))
    tensor(1.)
    """
    difference = student - teacher
    sizes = [size for size in (4, 2, 1) if size < difference.shape[2]]
    value, total = difference.square().mean(), 1.0
    for i, size in enumerate(sizes, start=1):
        value = value + F.adaptive_avg_pool2d(difference, size).square().mean() / 2**i
        total += 1 / 2**i
    return value / total


def _convolution(before: int, after: int, kernel: int) -> nn.Sequential:
    convolution = nn.Conv2d(before, after, kernel, padding=kernel // 2, bias=False)
    nn.init.kaiming_uniform_(convolution.weight, a=1)
    return nn.Sequential(OrderedDict(conv=convolution, norm=BatchNorm(after)))


def _as_map(outputs: Outputs, side: str) -> Tensor:
    if outputs.embedding is None:
        raise InputError(
            f"The {side} has no embedding (its last layer is not linear): tap one more layer and set embedding=False."
        )
    return outputs.embedding.flatten(1)[:, :, None, None]
