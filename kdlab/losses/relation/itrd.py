"""Information-theoretic distillation (ITRD): correlated features and sample similarities (Miles et al. 2022)."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from kdlab.errors import InputError
from kdlab.losses.checks import at_least, embeddings
from kdlab.losses.functional import full_precision
from kdlab.losses.lazy import Lazy
from kdlab.outputs import Outputs


class ITRD(Lazy):
    r"""Correlation of every feature with the teacher's, and mutual information of sample similarities.

    .. math:: L = \lambda_c \log_2 \sum_d |c_d - 1|^{2 \alpha} + \lambda_m \sum_{i,j} \left( (\bar G^s_{ij})^2 -
              (\bar M_{ij})^2 \right), \qquad c_d = \frac{1}{B} \sum_b \tilde x^s_{bd} \, \tilde x^t_{bd}

    with :math:`x^s` the student's embedding after a trained linear map to the teacher's width, :math:`\tilde x` each
    feature minus its mean over the batch and divided by its standard deviation (that of B - 1 degrees of freedom, at
    least 10^-12), :math:`G_{ij} = \hat x_i \cdot \hat x_j` the cosines of the samples, :math:`M_{ij} = G^s_{ij}
    G^t_{ij}`, and the bar the division by the trace. It can be negative. Computed in float32, or in float64 for float64
    embeddings; memory grows with B^2.

    Recipe: CIFAR-100 correlation 2, mutual 1, alpha = 1.5, weight 1 beside weight 1 on the labels.

    Args:
        correlation: weight of the first part, not negative.
        mutual: weight of the second part, not negative.
        alpha: exponent of the first part, positive.

    Shapes:
        embedding: (B, Ds) and (B, Dt), or one tapped layer of each network, flattened.
        target: not used.

    Raises:
        InputError: a batch of one (no variance); several layers tapped; nothing to compare.

    Paper: R. Miles, A. Lopez Rodriguez, K. Mikolajczyk, "Information Theoretic Representation Distillation", BMVC 2022,
    arXiv 2112.00459. Follows the code in the TTM repository, except that a feature that is constant in the batch (as
    after a ReLU) counts as uncorrelated, where that code gives NaN.

    >>> import torch
    >>> student, teacher = torch.eye(2), torch.tensor([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0]])
    >>> ITRD()(Outputs(student, embedding=student), Outputs(teacher, embedding=teacher), torch.zeros(2)).shape
    torch.Size([])
    """

    needs: ClassVar[tuple[str, ...]] = ("embedding",)
    recipe_weight: ClassVar[float] = 1.0
    minimum: ClassVar[float | None] = None  # a fresh map is not the identity
    couples_samples: ClassVar[bool] = True

    def __init__(self, correlation: float = 2.0, mutual: float = 1.0, alpha: float = 1.5) -> None:
        super().__init__()
        self.correlation = at_least("correlation", correlation, 0)
        self.mutual = at_least("mutual", mutual, 0)
        self.alpha = at_least("alpha", alpha, 0, strictly=True)

    def build(self, student: int, teacher: int) -> None:
        """Build the linear map."""
        self.embed = nn.Linear(student, teacher)

    @full_precision
    def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        """Return the weighted sum of both parts, a scalar; gradient to the student and to the map."""
        student_embedding, teacher_embedding = embeddings(student, teacher)
        if len(student_embedding) < 2:
            raise InputError("ITRD needs at least 2 samples in a batch: one has no variance.")
        self.materialize(student_embedding, student_embedding.shape[1], teacher_embedding.shape[1])
        student_embedding, teacher_embedding = self.embed(student_embedding), teacher_embedding.detach()
        correlations = (_standard(student_embedding) * _standard(teacher_embedding)).sum(0) / len(student_embedding)
        correlation = (correlations - 1).abs().pow(2 * self.alpha).sum().log2()
        cosines = _cosines(student_embedding)
        mutual = _over_trace(cosines).square().sum() - _over_trace(cosines * _cosines(teacher_embedding)).square().sum()
        return self.correlation * correlation + self.mutual * mutual


def _standard(x: Tensor) -> Tensor:
    return (x - x.mean(0)) / x.std(0).clamp(min=1e-12)


def _cosines(x: Tensor) -> Tensor:
    x = F.normalize(x, eps=1e-12)
    return x @ x.T


def _over_trace(matrix: Tensor) -> Tensor:
    return matrix / matrix.trace().clamp(min=1e-12)
