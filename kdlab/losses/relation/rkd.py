"""Relational knowledge distillation (RKD): distances and angles between samples (Park et al. 2019)."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdlab.losses.checks import embeddings
from kdlab.losses.functional import full_precision
from kdlab.outputs import Outputs


class RKDDistance(nn.Module):
    r"""Smooth-L1 difference of the distances between samples, in units of their mean.

    .. math:: L = \frac{1}{B^2} \sum_{i,j} h\left( \frac{d^s_{ij}}{\bar d^s} - \frac{d^t_{ij}}{\bar d^t} \right), \qquad
              d_{ij} = \sqrt{\max(\| x_i - x_j \|^2, 10^{-12})} \; (i \ne j), \quad d_{ii} = 0

    with :math:`\bar d` the mean over i other than j, and h(u) = u^2 / 2 for |u| < 1, else |u| - 1/2. 0 when both
    networks have the same relative distances, and always 0 for a batch of two, or of one, which has no pair. Computed
    in float32, or in float64 for float64 embeddings; memory grows with B^2.

    Recipe: weight 25, with 50 on :class:`RKDAngle`, beside weight 1 on the labels; the embedding before the classifier.

    Shapes:
        embedding: (B, Ds) and (B, Dt), or one tapped layer of each network, flattened; widths may differ.
        target: not used.

    Raises:
        InputError: an empty batch; several layers tapped; nothing to compare.

    Paper: W. Park, D. Kim, Y. Lu, M. Cho, "Relational Knowledge Distillation", CVPR 2019, arXiv 1904.05068. Follows the
    authors' code, as RepDistiller and mdistiller do; mmrazor normalizes the embeddings first, which this does not.

    >>> student, teacher = torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([[0.0], [1.0], [3.0]])
    >>> RKDDistance()(Outputs(student, embedding=student), Outputs(teacher, embedding=teacher), torch.zeros(3))
    tensor(0.0139)
    """

    needs: ClassVar[tuple[str, ...]] = ("embedding",)
    recipe_weight: ClassVar[float] = 25.0
    couples_samples: ClassVar[bool] = True

    @full_precision
    def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        """Return the mean over all pairs, a scalar; gradient to the student only."""
        student_embedding, teacher_embedding = embeddings(student, teacher)
        return F.smooth_l1_loss(_distances(student_embedding), _distances(teacher_embedding.detach()))


class RKDAngle(nn.Module):
    r"""Smooth-L1 difference of the cosines of the angles that triples of samples form.

    .. math:: L = \frac{1}{B^3} \sum_{i,j,k} h\left( e^s_{ij} \cdot e^s_{ik} - e^t_{ij} \cdot e^t_{ik} \right), \qquad
              e_{ij} = \frac{x_j - x_i}{\max(\| x_j - x_i \|_2, 10^{-12})}

    with h(u) = u^2 / 2 for |u| < 1, else |u| - 1/2. 0 when both networks have the same angles, and always 0 for a batch
    of one or two. Computed in float32, or in float64 for float64 embeddings; memory grows with B^3 + B^2 D.

    The gradient at two identical student samples is huge (about 10^9), because their direction is divided by 10^-12, as
    in the released code: clip gradients if a batch can hold a sample twice.

    Recipe: weight 50, with 25 on :class:`RKDDistance`, beside weight 1 on the labels; the embedding before the
    classifier.

    Shapes:
        embedding: (B, Ds) and (B, Dt), or one tapped layer of each network, flattened; widths may differ.
        target: not used.

    Raises:
        InputError: an empty batch; several layers tapped; nothing to compare.

    Paper: W. Park, D. Kim, Y. Lu, M. Cho, "Relational Knowledge Distillation", CVPR 2019, arXiv 1904.05068. Follows the
    authors' code, as RepDistiller and mdistiller do; mmrazor normalizes the embeddings first, which this does not.

    >>> student, teacher = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.0], [1.0], [2.0]])
    >>> RKDAngle()(Outputs(student, embedding=student), Outputs(teacher, embedding=teacher), torch.zeros(3))
    tensor(0.1296)
    """

    needs: ClassVar[tuple[str, ...]] = ("embedding",)
    recipe_weight: ClassVar[float] = 50.0
    couples_samples: ClassVar[bool] = True

    @full_precision
    def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        """Return the mean over all triples, a scalar; gradient to the student only."""
        student_embedding, teacher_embedding = embeddings(student, teacher)
        return F.smooth_l1_loss(_cosines(student_embedding), _cosines(teacher_embedding.detach()))


def _distances(x: Tensor) -> Tensor:
    """Return Euclidean distances (B, B) over their mean, from products of centered rows (no B^2 D memory)."""
    x = x - x.mean(0)
    products = x @ x.T
    squares = products.diagonal()
    distances = (squares[:, None] + squares[None, :] - 2 * products).clamp(min=1e-12).sqrt()
    distances = distances.masked_fill(torch.eye(len(x), dtype=torch.bool, device=x.device), 0.0)
    return distances / (distances.sum() / (len(x) * (len(x) - 1))) if len(x) > 1 else distances


def _cosines(x: Tensor) -> Tensor:
    directions = F.normalize(x[None, :] - x[:, None], dim=2, eps=1e-12)
    return directions @ directions.transpose(1, 2)
