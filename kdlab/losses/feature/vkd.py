"""VkD: orthogonal projection to the teacher's normalized embedding (Miles et al. 2024)."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import orthogonal

from kdlab.losses.checks import embeddings
from kdlab.losses.functional import full_precision
from kdlab.losses.lazy import Lazy
from kdlab.outputs import Outputs


class VkD(Lazy):
    r"""Smooth L1 distance of the orthogonally projected embedding and the teacher's layer-normalized one.

    .. math:: L = \frac{1}{B D_t} \sum_{b,d} \rho\bigl( (A h^s_b)_d - \mathrm{LN}(h^t_b)_d \bigr), \qquad A^T A = I

    with :math:`\rho(u) = u^2 / 2` for :math:`|u| < 1`, else :math:`|u| - 1/2`; LN subtracts a sample's mean over its
    entries and divides by their standard deviation (plus 1e-5 in the variance), without weights. A is trained and
    stays orthogonal (by a matrix exponential), so that it keeps all distances between the student's embeddings. With
    Ds > Dt, where that is impossible, the rows of A are orthonormal instead. Computed in float32, or in float64 for
    float64 embeddings.

    Recipe: ImageNet (DeiT students, RegNetY-160 teacher) weight 1 beside weight 1 on the labels and KD with T = 1 and
    weight 1 on a separate head; there is none for CIFAR-100.

    Shapes:
        embeddings (B, Ds) and (B, Dt), or one tapped layer on each side, flattened.
        target: not used.

    Raises:
        InputError: no embedding, several layers, an empty batch.

    Paper: R. Miles, I. Elezi, J. Deng, "VkD: Improving Knowledge Distillation using Orthogonal Projections", CVPR 2024,
    arXiv 2403.06213, which whitens the teacher instead for generative tasks. Follows the authors' code, where the
    student's embedding is the mean of its image tokens and the teacher's the pooled last map, and A is parametrized by
    Householder reflections where widths differ.

    >>> import torch
    >>> student, teacher = (Outputs(torch.zeros(4, 5), embedding=torch.rand(4, width)) for width in (8, 16))
    >>> loss = VkD()
    >>> loss(student, teacher, torch.zeros(4)).shape
    torch.Size([])
    >>> bool(torch.allclose(loss.projector.weight.T @ loss.projector.weight, torch.eye(8), atol=1e-5))
    True
    """

    needs: ClassVar[tuple[str, ...]] = ("embedding",)
    recipe_weight: ClassVar[float] = 1.0
    minimum: ClassVar[float | None] = None  # a fresh projection is not the identity, and only one side is normalized

    def build(self, student: int, teacher: int) -> None:
        """Build the orthogonal projector."""
        # Not torch's Householder map, the default for unequal widths: weight decay sets it to 0 at the first step.
        self.projector = orthogonal(nn.Linear(student, teacher, bias=False), orthogonal_map="matrix_exp")

    @full_precision
    def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        """Return the mean over all entries, a scalar; gradient to the student and to the projector."""
        student_embedding, teacher_embedding = embeddings(student, teacher)
        self.materialize(student_embedding, student_embedding.shape[1], teacher_embedding.shape[1])
        return F.smooth_l1_loss(
            self.projector(student_embedding), F.layer_norm(teacher_embedding.detach(), teacher_embedding.shape[1:])
        )
