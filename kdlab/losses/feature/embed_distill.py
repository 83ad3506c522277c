"""EmbedDistill: the teacher's embedding as the target (Kim et al. 2023)."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdlab.errors import InputError
from kdlab.losses.checks import embeddings, one_of
from kdlab.losses.functional import full_precision
from kdlab.losses.lazy import Lazy
from kdlab.outputs import Outputs


class EmbedDistill(Lazy):
    r"""Distance of the student's embedding, projected if asked for, and the teacher's, averaged over samples.

    .. math:: L_{mse} = \frac{1}{B D} \sum_b \|e^s_b - e^t_b\|^2, \quad
              L_{l2} = \frac{1}{B} \sum_b \|e^s_b - e^t_b\|, \quad
              L_{cosine} = \frac{1}{B} \sum_b \left(1 - \cos(e^s_b, e^t_b)\right)

    Needs no labels. Computed in float32, or in float64 for float64 embeddings.

    Recipe: weight 1, weight 0 on the labels, for sentence encoders; none for images.

    Args:
        distance: ``"mse"``, ``"l2"`` or ``"cosine"``.
        project: train a linear map (without bias) of the student's embedding to the teacher's width.

    Shapes:
        embeddings (B, Ds) and (B, Dt), or one tapped layer on each side (``sentence_embedding``).
        target: not used.

    Raises:
        InputError: no embedding, several layers, other widths without ``project``, an empty batch.

    Paper: S. Kim, A. S. Rawat, M. Zaheer, S. Jayasumana, V. Sadhanala, W. Jitkrittum, A. K. Menon, R. Fergus, S. Kumar,
    "EmbedDistill: A Geometric Knowledge Distillation for Information Retrieval", 2023, arXiv 2301.12005. The distances
    are those of sentence-transformers' ``EmbedDistillLoss``, whose teacher is a column of stored vectors.

    >>> import torch
    >>> student, teacher = (Outputs(torch.zeros(1, 2), embedding=torch.tensor([x])) for x in ([3.0, 0.0], [0.0, 4.0]))
    >>> [round(float(EmbedDistill(word)(student, teacher, torch.zeros(1))), 2) for word in ("mse", "l2", "cosine")]
    [12.5, 5.0, 1.0]
    """

    needs: ClassVar[tuple[str, ...]] = ("embedding",)
    recipe_weight: ClassVar[float] = 1.0

    def __init__(self, distance: Literal["mse", "l2", "cosine"] = "mse", project: bool = False) -> None:
        super().__init__()
        self.distance = one_of("distance", distance, ("mse", "l2", "cosine"))
        self.project = project

    def build(self, student: int, teacher: int) -> None:
        """Build the projection."""
        self.projection = nn.Linear(student, teacher, bias=False)

    @full_precision
    def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        """Return the mean over samples, a scalar; gradient to the student and to the projection."""
        ours, theirs = embeddings(student, teacher)
        theirs = theirs.detach()
        if self.project:
            self.materialize(ours, ours.shape[1], theirs.shape[1])
            ours = self.projection(ours)
        elif ours.shape[1] != theirs.shape[1]:
            raise InputError(
                f"The student's embedding is {ours.shape[1]} wide and the teacher's {theirs.shape[1]}: set project to "
                "true."
            )
        if self.distance == "mse":
            return F.mse_loss(ours, theirs)
        if self.distance == "cosine":
            return (1 - F.cosine_similarity(ours, theirs, -1)).mean()
        distances: Tensor = torch.linalg.vector_norm(ours - theirs, dim=1)
        return distances.mean()
