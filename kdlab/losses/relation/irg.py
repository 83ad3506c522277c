"""Instance relationship graph (IRG): sample distances, and their change over layers (Liu et al. 2019)."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdlab.errors import InputError
from kdlab.losses.checks import Pair, at_least, embeddings, layer_pairs
from kdlab.losses.functional import full_precision
from kdlab.outputs import Outputs


class IRG(nn.Module):
    r"""Difference of the embeddings, of their distances, and of the change of distances between stages.

    .. math:: L = w_g \left( \mathrm{mse}(E^s, E^t) + \mathrm{mse}(x^s, x^t) \right) + w_f \sum_i
              \left( \mathrm{mse}(E^s_{2i}, E^s_{2i+1}) - \mathrm{mse}(E^t_{2i}, E^t_{2i+1}) \right)^2, \qquad
              E_{jk} = \frac{d_{jk}}{\max d + 10^{-12}}

    with :math:`d_{jk} = \max(\| x_j - x_k \|^2, 10^{-12})`, 0 for j = k, mse the mean over all elements, x the
    embedding and :math:`E_i` from the i-th tapped layer, flattened: layers come in consecutive pairs, the start and the
    end of a transformation. The embeddings themselves are compared only where their widths agree. Where both layers of
    a transformation have one shape (in both networks), the square of the difference of
    :math:`\mathrm{mse}(f_{2i}, f_{2i+1})` is added as well. 0 when both networks give the same embedding and layers.
    Computed in float32, or in float64 for float64 inputs; memory grows with B^2.

    Recipe: CIFAR-100 weight 0.005 beside weight 1 on the labels and on soft targets (T = 4), in the SemCKD repository.

    Args:
        graph: w_g, of the embeddings and their distances, not negative.
        transformation: w_f, of the transformations, not negative.

    Shapes:
        embedding: (B, Ds) and (B, Dt).
        layers: an even number of pairs (B, ...) and (B, ...).
        target: not used.

    Raises:
        InputError: an odd number of layers, or none; no embedding; unequal batches; an empty batch.

    Paper: Y. Liu, J. Cao, B. Li, C. Yuan, W. Hu, Y. Li, Y. Duan, "Knowledge Distillation via Instance Relationship
    Graph", CVPR 2019. Follows the code in the SemCKD repository; Knowledge-Distillation-Zoo compares logits as
    vertices and averages the distances of several layers.

    >>> x, y = torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([[0.0], [1.0], [3.0]])
    >>> IRG()(Outputs(x, (x, x), x), Outputs(y, (y, y), y), torch.zeros(3))
    tensor(0.3460)
    """

    needs: ClassVar[tuple[str, ...]] = ("layers", "embedding")
    recipe_weight: ClassVar[float] = 0.005
    couples_samples: ClassVar[bool] = True

    def __init__(self, graph: float = 1.0, transformation: float = 1.0) -> None:
        super().__init__()
        self.graph = at_least("graph", graph, 0)
        self.transformation = at_least("transformation", transformation, 0)

    @full_precision
    def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        """Return the weighted sum, a scalar; gradient to the student only."""
        pairs = layer_pairs(student, teacher)
        if len(pairs) % 2:
            raise InputError(f"IRG takes layers in consecutive pairs, so an even number of them, not {len(pairs)}.")
        student_embedding, teacher_embedding = embeddings(
            *(Outputs(each.logits, embedding=each.embedding) for each in (student, teacher))
        )
        if len(student_embedding) != len(pairs[0].student):
            raise InputError(
                f"IRG got embeddings of {len(student_embedding)} samples and layers of {len(pairs[0].student)}."
            )
        graph = F.mse_loss(_distances(student_embedding), _distances(teacher_embedding.detach()))
        if student_embedding.shape == teacher_embedding.shape:
            graph = graph + F.mse_loss(student_embedding, teacher_embedding.detach())
        changes = [_change(first, second) for first, second in zip(pairs[::2], pairs[1::2], strict=True)]
        return self.graph * graph + self.transformation * torch.stack(changes).sum()


def _change(first: Pair, second: Pair) -> Tensor:
    """Return the difference of both networks' change from the first layer to the second."""
    student, teacher = (first.student, second.student), (first.teacher.detach(), second.teacher.detach())
    edges = [F.mse_loss(_distances(one.flatten(1)), _distances(two.flatten(1))) for one, two in (student, teacher)]
    change = (edges[0] - edges[1]).square()
    if student[0].shape == student[1].shape and teacher[0].shape == teacher[1].shape:
        change = change + (F.mse_loss(*student) - F.mse_loss(*teacher)).square()
    return change


def _distances(x: Tensor) -> Tensor:
    """Return squared distances (B, B) over the largest, from products of centered rows (no B^2 D memory)."""
    x = x - x.mean(0)
    products = x @ x.T
    squares = products.diagonal()
    distances = (squares[:, None] + squares[None, :] - 2 * products).clamp(min=1e-12)
    distances = distances.masked_fill(torch.eye(len(x), dtype=torch.bool, device=x.device), 0.0)
    return distances / (distances.max() + 1e-12)
