"""Masked generative distillation (MGD): the teacher's map generated from the masked student map (Yang et al. 2022)."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdlab.errors import InputError
from kdlab.losses.checks import at_least, map_pairs, one_of
from kdlab.losses.feature.connectors import widened
from kdlab.losses.functional import full_precision
from kdlab.losses.lazy import Lazy
from kdlab.outputs import Outputs


class MGD(Lazy):
    r"""Squared difference of the teacher's map and one generated from the masked student map, summed over the layers.

    .. math:: L = \sum_i \frac{1}{B} \| G_i(M \odot r_i(s_i)) - t_i \|^2

    M sets each channel (or each position) of each sample to 0 with probability ``ratio``.
    r is a trained 1 x 1 convolution where the channels differ, else the identity; G is two trained 3 x 3 convolutions
    with ReLU between them. Masks are drawn anew at every call from the global generator. Computed in float32, or in
    float64 for float64 layers.

    Recipe: CIFAR-100 weight 0.0012 beside weight 1 on the labels, the end of the last stage, ratio 0.15 of the channels
    (ResNet-34 to 18); ImageNet weight 0.00007, ratio 0.15 of the channels. Detection: weight 0.00002, ratio 0.65 of the
    positions of five levels; segmentation: 0.00002, ratio 0.75.

    Args:
        ratio: expected share of the student's map that is masked, in [0, 1).
        masked: ``"channels"`` or ``"positions"``.

    Shapes:
        layers: pairs of maps (B, Cs, H, W) and (B, Ct, H, W).
        target: not used.

    Raises:
        InputError: a ratio out of range or an unknown ``masked``; no layers, unequal numbers of layers, layers that are
            not maps or differ in height or width.

    Paper: Z. Yang, Z. Li, M. Shao, D. Shi, Z. Yuan, C. Yuan, "Masked Generative Distillation", ECCV 2022, arXiv
    2205.01529. Follows the authors' code: cls_KD for channels, MGD for positions.

    >>> student = Outputs(torch.zeros(2, 2), layers=(torch.rand(2, 3, 4, 4),))
    >>> teacher = Outputs(torch.zeros(2, 2), layers=(torch.rand(2, 5, 4, 4),))
    >>> loss = MGD(ratio=0.15)
    >>> loss(student, teacher, torch.zeros(2)).shape
    torch.Size([])
    >>> [name for name, _ in loss.aligned.named_parameters()]
    ['0.weight', '0.bias']
    """

    needs: ClassVar[tuple[str, ...]] = ("layers",)
    recipe_weight: ClassVar[float] = 0.0012
    minimum: ClassVar[float | None] = None  # a fresh generator is not the identity
    order_matters: ClassVar[bool] = True  # a mask is drawn for each sample

    def __init__(self, ratio: float = 0.15, masked: Literal["channels", "positions"] = "channels") -> None:
        super().__init__()
        self.ratio = at_least("ratio", ratio, 0, below=1)
        self.masked = one_of("masked", masked, ("channels", "positions"))

    def build(self, *channels: tuple[int, int]) -> None:
        """Build the alignment and the generator for every pair of channels."""
        self.aligned = nn.ModuleList(widened(*each) for each in channels)
        self.generators = nn.ModuleList(_generator(teacher) for _, teacher in channels)

    @full_precision
    def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        """Return the sum over the layers, a scalar; gradient to the student, alignment and generators."""
        pairs = map_pairs(student, teacher)
        for pair in pairs:
            if pair.student.shape[2:] != pair.teacher.shape[2:]:
                raise InputError(f"MGD needs maps of one height and width, but {pair.shapes}: tap other layers.")
        self.materialize(pairs[0].student, *((pair.student.shape[1], pair.teacher.shape[1]) for pair in pairs))
        values = []
        for align, generate, pair in zip(self.aligned, self.generators, pairs, strict=True):
            student_map = align(pair.student)
            generated = generate(student_map * self.keep_mask(self.uniform(student_map)))
            values.append(F.mse_loss(generated, pair.teacher.detach(), reduction="sum"))
        return torch.stack(values).sum() / len(pairs[0].student)

    def uniform(self, x: Tensor) -> Tensor:
        """Draw a number from [0, 1) for every channel, (B, C, 1, 1), or every position, (B, 1, H, W)."""
        shape = (*x.shape[:2], 1, 1) if self.masked == "channels" else (len(x), 1, *x.shape[2:])
        return torch.rand(shape, device=x.device)

    def keep_mask(self, uniform: Tensor) -> Tensor:
        """Return the mask of a draw of :meth:`uniform`: true where the student's map is kept."""
        return uniform >= self.ratio if self.masked == "channels" else uniform <= 1 - self.ratio


def _generator(channels: int) -> nn.Sequential:
    first, second = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
    return nn.Sequential(first, nn.ReLU(), second)
