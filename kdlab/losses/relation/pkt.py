"""Probabilistic knowledge transfer (PKT): divergence of neighbor probabilities (Passalis and Tefas 2018)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from kdlab.losses.checks import at_least, embeddings
from kdlab.losses.functional import full_precision
from kdlab.outputs import Outputs


class PKT(nn.Module):
    r"""Divergence of the student's neighbor probabilities from the teacher's, by cosine similarity.

    .. math:: L = \frac{1}{B^2} \sum_{i,j} p^t_{ij} \log \frac{p^t_{ij} + \epsilon}{p^s_{ij} + \epsilon}, \qquad
              p_{ij} = \frac{c_{ij}}{\sum_k c_{ik}}, \quad c_{ij} = \frac{1}{2} \left( 1 +
              \frac{x_i \cdot x_j}{(\| x_i \| + \epsilon)(\| x_j \| + \epsilon)} \right)

    A sample is its own neighbor too. 0 when both networks have the same probabilities, and always 0 for a batch of
    one. Computed in float32, or in float64 for float64 embeddings; memory grows with B^2.

    Recipe: CIFAR-100 weight 30000 beside weight 1 on the labels. The mean over B^2 makes the weight depend on the batch
    size: it is 30000 at B = 64.

    Args:
        epsilon: keeps denominators and logarithms finite, positive.

    Shapes:
        embedding: (B, Ds) and (B, Dt), or one tapped layer of each network, flattened; widths may differ.
        target: not used.

    Raises:
        InputError: an empty batch; several layers tapped; nothing to compare.

    Paper: N. Passalis, A. Tefas, "Learning Deep Representations with Probabilistic Knowledge Transfer", ECCV 2018,
    arXiv 1803.10837. Follows the authors' code, as RepDistiller and mdistiller do, except that a sample whose
    embedding is 0 gets a finite gradient.

    >>> student, teacher = torch.eye(2), torch.tensor([[1.0], [2.0]])
    >>> PKT()(Outputs(student, embedding=student), Outputs(teacher, embedding=teacher), torch.zeros(2))
    tensor(0.0294)
    """

    needs: ClassVar[tuple[str, ...]] = ("embedding",)
    recipe_weight: ClassVar[float] = 30000.0
    couples_samples: ClassVar[bool] = True

    def __init__(self, epsilon: float = 1e-7) -> None:
        super().__init__()
        self.epsilon = at_least("epsilon", epsilon, 0, strictly=True)

    @full_precision
    def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        """Return the mean over all pairs, a scalar; gradient to the student only."""
        student_embedding, teacher_embedding = embeddings(student, teacher)
        p_s, p_t = self._neighbors(student_embedding), self._neighbors(teacher_embedding.detach())
        return (p_t * ((p_t + self.epsilon).log() - (p_s + self.epsilon).log())).mean()

    def _neighbors(self, x: Tensor) -> Tensor:
        x = x / (torch.linalg.vector_norm(x, dim=1, keepdim=True) + self.epsilon)
        similar = ((x @ x.T + 1) / 2).clamp(min=0)  # rounding can go below
        return similar / similar.sum(1, keepdim=True)
