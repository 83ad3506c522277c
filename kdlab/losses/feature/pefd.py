"""PEFD: cosine distance of an ensemble of projectors of the embedding (Chen et al. 2022)."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdlab.losses.checks import embeddings
from kdlab.losses.feature.last_map import whole_number
from kdlab.losses.functional import full_precision
from kdlab.losses.lazy import Lazy
from kdlab.outputs import Outputs


class PEFD(Lazy):
    r"""One minus the cosine of the averaged projections and the teacher's embedding.

    .. math:: L = \frac{1}{B} \sum_b \Bigl( 1 - \cos\bigl(\tfrac{1}{q} \sum_i \mathrm{ReLU}(A_i h^s_b + a_i),
              \, h^t_b \bigr) \Bigr)

    with q trained projectors; norms are at least 1e-12, so that a sample with no active projection counts 1. The
    minimum over the projectors is 0 only where their mean can express the teacher's direction. Computed in float32, or
    in float64 for float64 embeddings.

    Recipe: weight 25 beside weight 1 on the labels, q = 3, for CIFAR-100 and ImageNet.

    Args:
        projectors: q, at least 1.

    Shapes:
        embeddings (B, Ds) and (B, Dt), or one tapped layer on each side, flattened.
        target: not used.

    Raises:
        InputError: a number out of range; no embedding, several layers, an empty batch.

    Paper: Y. Chen, S. Wang, J. Liu, X. Xu, F. de Hoog, Z. Huang, "Improved Feature Distillation via Projector
    Ensemble", NeurIPS 2022, arXiv 2210.15274. Follows the authors' code, which also makes a fourth projector and never
    uses it, and sets no bound on the norms.

    >>> student, teacher = (Outputs(torch.zeros(4, 5), embedding=torch.rand(4, width)) for width in (8, 16))
    >>> loss = PEFD()
    >>> 0 <= loss(student, teacher, torch.zeros(4)).item() <= 1
    True
    >>> len(loss.projectors), loss.projectors[0]
    (3, Linear(in_features=8, out_features=16, bias=True))
    """

    needs: ClassVar[tuple[str, ...]] = ("embedding",)
    recipe_weight: ClassVar[float] = 25.0
    minimum: ClassVar[float | None] = None  # fresh projectors are not the identity

    def __init__(self, projectors: int = 3) -> None:
        super().__init__()
        self.count = whole_number("projectors", projectors)

    def build(self, student: int, teacher: int) -> None:
        """Build the projectors."""
        self.projectors = nn.ModuleList([nn.Linear(student, teacher) for _ in range(self.count)])

    @full_precision
    def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        """Return the mean over samples, a scalar; gradient to the student and to the projectors."""
        student_embedding, teacher_embedding = embeddings(student, teacher)
        self.materialize(student_embedding, student_embedding.shape[1], teacher_embedding.shape[1])
        projected = torch.stack([F.relu(projector(student_embedding)) for projector in self.projectors]).mean(0)
        return 1 - F.cosine_similarity(projected, teacher_embedding.detach(), eps=1e-12).mean()
