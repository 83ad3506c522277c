"""Cosine and smooth L1: direction and value of projected features (Ranzinger et al. 2024)."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from kdlab.losses.checks import at_least
from kdlab.losses.feature.positions_pair import vectors
from kdlab.losses.functional import full_precision
from kdlab.losses.projecting import Projecting, Projection
from kdlab.outputs import Outputs


class CosineSmoothL1(Projecting):
    r"""Direction and value of a teacher's features, from a projection of the student's.

    .. math:: L = \frac{1}{B N} \sum_{b, n} \left( \alpha \, (1 - \cos(h(s_{bn}), t_{bn})) +
              \frac{\beta}{D} \sum_d \ell(h(s_{bn})_d - t_{bnd}) \right), \qquad
              \ell(u) = \tfrac12 u^2 \text{ for } |u| < 1, \text{ else } |u| - \tfrac12

    over the N positions of tokens or of a map (N = 1 for embeddings) and the D features of the teacher. h is trained:
    ``"linear"``, ``"mlp"`` (linear to D, layer normalization, GELU, linear) or ``None`` for equal widths. A student's
    map is resized to the teacher's. Each of several teachers has its own h. Needs no labels. Computed in float32, or in
    float64 for float64 features.

    Recipe: weight 1 for each teacher, on standardized features (:class:`Standardized`), without labels.

    Args:
        cosine: :math:`\alpha`, not negative.
        smooth: :math:`\beta`, not negative. UNIC has 0.5 and 0.5 everywhere; AM-RADIO the cosine alone for summary
            features, and 0.9 and 0.1 for patches.
        projection: the kind of h.

    Shapes:
        embedding: (B, Ds) and (B, Dt), or one tapped layer of each: tokens (B, N, D) or maps (B, D, h, w), see
            ``"LAYER:tokens"`` and ``"LAYER:map"``.
        target: not used.

    Raises:
        InputError: a number out of range, widths that differ without projection, layers without common positions.

    Paper: M. Ranzinger, G. Heinrich, J. Kautz, P. Molchanov, "AM-RADIO: Agglomerative Vision Foundation Model", CVPR
    2024, arXiv 2312.06709; M. B. Sariyildiz, P. Weinzaepfel, T. Lucas, D. Larlus, Y. Kalantidis, "UNIC: Universal
    Classification Models via Multi-teacher Distillation", ECCV 2024, arXiv 2408.05088. UNIC's ladder of projectors,
    which also reads inner layers, is not part of this.

    >>> import torch
    >>> student, teacher = (Outputs(torch.zeros(1, 2), embedding=torch.tensor([x])) for x in ([3.0, 0.0], [0.0, 1.0]))
    >>> CosineSmoothL1(projection=None)(student, teacher, torch.zeros(1))  # (1 - 0) / 2 + (2.5 + 0.5) / 2 / 2
    tensor(1.2500)
    """

    needs: ClassVar[tuple[str, ...]] = ("embedding",)
    recipe_weight: ClassVar[float] = 1.0
    minimum: ClassVar[float | None] = None  # a fresh projection is not the identity

    def __init__(self, cosine: float = 0.5, smooth: float = 0.5, projection: Projection | None = "linear") -> None:
        super().__init__(projection)
        self.cosine, self.smooth = at_least("cosine", cosine, 0), at_least("smooth", smooth, 0)

    @full_precision
    def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        """Return the mean over samples and positions, a scalar; gradient to the student and to h."""
        return self._by_position(student, teacher).mean()

    def per_sample(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        """Return the mean over positions of each sample, (B,)."""
        return self._by_position(student, teacher).mean(1)

    def _by_position(self, student: Outputs, teacher: Outputs) -> Tensor:
        """Return the loss at every position, (B, N)."""
        features, targets = vectors(student, teacher)
        targets = targets.detach()
        features = self.project(features, targets)
        distance = F.smooth_l1_loss(features, targets, reduction="none").mean(2)
        return self.cosine * (1 - F.cosine_similarity(features, targets, 2)) + self.smooth * distance
