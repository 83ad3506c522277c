"""Singular value distillation (KDSVD): leading singular vectors of consecutive layers (Lee et al. 2018)."""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdlab.errors import InputError
from kdlab.losses.checks import at_least, map_pairs
from kdlab.losses.functional import full_precision
from kdlab.outputs import Outputs


class KDSVD(nn.Module):
    r"""Squared difference of radial basis functions of consecutive layers' singular vectors.

    .. math:: L = \sum_{i=2}^{n} \frac{1}{B} \sum_{b} \sum_{c, d, k} \left( e^{-(v^s_{i,ck} - v^s_{i-1,dk})^2 / 8} -
              e^{-(v^t_{i,ck} - v^t_{i-1,dk})^2 / 8} \right)^2

    A map is a matrix of H * W rows and C columns. :math:`v^t` are its first k right singular vectors (one number a
    channel), times their singular values scaled to norm 1 (for k = 1 that factor is 1). :math:`v^s` are those of the
    student's first k + 3 vectors that are closest in angle to each of the teacher's, with the sign and the factors of
    the teacher's. A vector's sign is arbitrary but changes the value: here the teacher's vectors have a positive
    sum. The gradient of singular vectors is that of perturbation theory; vectors of equal singular values have
    none among themselves. 0 when both networks give the same maps. Computed in float32, or in float64 for float64
    layers.

    Recipe: mdistiller's weight 1 beside weight 1 on the labels (CIFAR-100), k = 1; here on the ends of all stages but
    the stem.

    Args:
        vectors: k, at least 1.

    Shapes:
        layers: at least two pairs of maps (B, C, Hs, Ws) and (B, C, Ht, Wt), from shallow to deep.
        target: not used.

    Raises:
        InputError: fewer than two layers, unequal numbers of layers, layers that are not maps, other channels, or fewer
            channels or positions than vectors.

    Paper: S. H. Lee, D. H. Kim, B. C. Song, "Self-supervised Knowledge Distillation Using Singular Value
    Decomposition", ECCV 2018, arXiv 1807.06819. This follows RepDistiller, whose signs are those of the
    library; mdistiller uses the matrix (C * H, W), which is another loss.

    >>> layers = torch.tensor([[[[1.0]], [[0.0]]]]), torch.tensor([[[[3.0]], [[4.0]]]])
    >>> student = Outputs(torch.zeros(1, 2), layers)
    >>> teacher = Outputs(torch.zeros(1, 2), (layers[0], layers[0]))
    >>> KDSVD()(student, teacher, torch.zeros(1))
    tensor(0.0244)
    """

    needs: ClassVar[tuple[str, ...]] = ("layers",)
    recipe_weight: ClassVar[float] = 1.0

    def __init__(self, vectors: int = 1) -> None:
        super().__init__()
        self.vectors = int(at_least("vectors", vectors, 1))

    @full_precision
    def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        """Return the sum over consecutive layers, a scalar; gradient to the student only."""
        pairs = map_pairs(student, teacher)
        if len(pairs) < 2:
            raise InputError("KDSVD compares consecutive layers: name at least two, from shallow to deep.")
        for pair in pairs:
            if pair.student.shape[1] != pair.teacher.shape[1]:
                raise InputError(f"KDSVD needs equal channels, but {pair.shapes}: tap layers of equal width.")
            positions = pair.student[0, 0].numel(), pair.teacher[0, 0].numel()
            if min(pair.student.shape[1], *positions) < self.vectors:
                raise InputError(f"KDSVD needs at least {self.vectors} channels and positions, but {pair.shapes}.")
        vectors = [self._aligned(pair.student, pair.teacher.detach()) for pair in pairs]
        values = [
            (_basis(student_vectors, student_next) - _basis(teacher_vectors, teacher_next)).square().sum()
            for (student_vectors, teacher_vectors), (student_next, teacher_next) in pairwise(vectors)
        ]
        return torch.stack(values).sum() / len(pairs[0].student)

    def _aligned(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Return the vectors (B, C, k) of both, weighted by the teacher's singular values."""
        teacher_vectors, values = _singular(teacher, self.vectors)
        teacher_vectors = teacher_vectors * torch.where(teacher_vectors.sum(1, keepdim=True) < 0, -1, 1)
        student_vectors, _ = _singular(student, self.vectors + 3)
        cosines = student_vectors.detach().transpose(1, 2) @ teacher_vectors
        best = cosines.abs().argmax(1, keepdim=True)
        signs = cosines.gather(1, best).sign()
        student_vectors = student_vectors.gather(2, best.expand(-1, student_vectors.shape[1], -1)) * signs
        factors = F.normalize(values, dim=1)[:, None]
        return student_vectors * factors, teacher_vectors * factors


def _singular(maps: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the first right singular vectors (B, C, count) and values (B, count) of maps as matrices (B, HW, C)."""
    matrix = maps.flatten(2)
    with torch.no_grad():
        left, values, _ = torch.linalg.svd(matrix, full_matrices=False)
    count = min(count, values.shape[1])
    vectors = left[:, :, :count]
    if maps.requires_grad:
        vectors = vectors + _first_order_change(matrix @ matrix.transpose(1, 2), left, values.square(), count)
    return vectors, values[:, :count]


def _first_order_change(gram: Tensor, left: Tensor, values: Tensor, count: int) -> Tensor:
    """Return 0 with the gradient of the first eigenvectors of ``gram``; autograd's is NaN for equal values."""
    vectors, selected = left[:, :, :count], values[:, None, :count]
    change = (gram - gram.detach()) @ vectors
    parts = left.transpose(1, 2) @ change
    rest = change - left @ parts
    smallest = torch.finfo(values.dtype).eps * values[:, :1, None].clamp(min=torch.finfo(values.dtype).tiny)
    gaps = selected - values[:, :, None]
    return left @ (parts * _inverse(gaps, smallest)) + rest * _inverse(selected, smallest)


def _inverse(gaps: Tensor, smallest: Tensor) -> Tensor:
    """Return 1 / gap, and 0 where the gap is below rounding."""
    real = gaps.abs() > smallest
    return torch.where(real, gaps, 1).reciprocal() * real


def _basis(before: Tensor, after: Tensor) -> Tensor:
    """Return the radial basis functions (B, D, C, k) of (B, C, k) and (B, D, k)."""
    return torch.exp(-(after[:, :, None] - before[:, None]).square() / 8)
