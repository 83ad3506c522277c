"""Convolutions from the shape of a student's map to that of a teacher's."""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

import torch
from torch import Tensor, nn

from kdlab.errors import InputError


class Geometry(NamedTuple):
    """Kernel size, stride (padding is 1 with stride 2, else 0) and whether the convolution is transposed."""

    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    transposed: bool = False


POINTWISE = Geometry()


def geometry(student: torch.Size, teacher: torch.Size) -> Geometry | None:
    """Return RepDistiller's convolution from one map size to another, or ``None`` if there is none.

    Twice as large: 3 x 3 with stride 2; half as large: 4 x 4 transposed with stride 2; else not smaller: a valid
    convolution with kernel 1 + Hs - Ht, which is 1 x 1 for equal sizes.
    """
    (hs, ws), (ht, wt) = student[2:], teacher[2:]
    if (hs, ws) == (2 * ht, 2 * wt):
        return Geometry((3, 3), stride=2)
    if (2 * hs, 2 * ws) == (ht, wt):
        return Geometry((4, 4), stride=2, transposed=True)
    if hs >= ht and ws >= wt:
        return Geometry((1 + hs - ht, 1 + ws - wt))
    return None


class BatchNorm(nn.BatchNorm2d):
    """``torch.nn.BatchNorm2d`` with an :class:`InputError` when training on one value per channel."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the normalized map."""
        if self.training and input.numel() == input.shape[1]:
            raise InputError(
                f"Batch normalization needs more than one value per channel in training, not {tuple(input.shape)}: use "
                "batches of at least 2 samples."
            )
        return super().forward(input)


def connector(
    student: int, teacher: int, form: Geometry = POINTWISE, *, bias: bool = True, relu: bool = True
) -> nn.Sequential:
    """Return convolution from ``student`` to ``teacher`` channels, batch normalization and, with ``relu``, ReLU.

    Initial values are PyTorch's defaults. The parts are named ``conv``, ``norm`` and ``relu``.
    """
    make = nn.ConvTranspose2d if form.transposed else nn.Conv2d
    padding = 1 if form.stride == 2 else 0
    conv = make(student, teacher, form.kernel, form.stride, padding, bias=bias)
    parts: list[tuple[str, nn.Module]] = [("conv", conv), ("norm", BatchNorm(teacher))]
    return nn.Sequential(OrderedDict([*parts, ("relu", nn.ReLU())] if relu else parts))


def widened(student: int, teacher: int) -> nn.Module:
    """Return a 1 x 1 convolution with bias from ``student`` to ``teacher`` channels, or the identity if equal."""
    return nn.Identity() if student == teacher else nn.Conv2d(student, teacher, 1)
