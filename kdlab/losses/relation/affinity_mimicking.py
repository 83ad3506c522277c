"""Affinity mimicking: the teacher's similarities within a batch as class scores (TinyCLIP, Wu et al. 2023)."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from kdlab.losses.checks import at_least, embeddings
from kdlab.losses.functional import full_precision
from kdlab.losses.projecting import Projecting, Projection
from kdlab.outputs import Outputs


class AffinityMimicking(Projecting):
    r"""KL divergence of affinities to the teacher's embeddings of the batch, in both directions.

    .. math:: A^s_{ij} = \frac{h(s_i) \cdot t_j}{\|h(s_i)\| \, \|t_j\| \, \tau}, \qquad
              A^t_{ij} = \frac{t_i \cdot t_j}{\|t_i\| \, \|t_j\| \, \tau}

    .. math:: L = \frac{1}{2 B} \sum_i \left( KL(\sigma(A^t_{i \cdot}) \| \sigma(A^s_{i \cdot})) +
              KL(\sigma(A^t_{\cdot i}) \| \sigma(A^s_{\cdot i})) \right)

    with the softmax :math:`\sigma` over the other index: how an image is like every image of the batch, and how every
    image is like it. h is trained, or ``None`` for equal widths. Needs no labels. Computed in float32, or in float64
    for float64 embeddings.

    Recipe: weight 1; none for images without texts is published.

    Args:
        temperature: :math:`\tau`, positive.
        projection: the kind of h, as in :class:`CosineSmoothL1`.

    Shapes:
        embedding: (B, Ds) and (B, Dt), or one tapped layer of each network, flattened.
        target: not used.

    Raises:
        InputError: a number out of range, widths that differ without projection, an empty batch.

    Paper: K. Wu et al., "TinyCLIP: CLIP Distillation via Affinity Mimicking and Weight Inheritance", ICCV 2023, arXiv
    2309.12314, whose affinities are those of images to texts and of texts to images, with the cross-entropy (the same
    gradient). Without texts the teacher's embeddings of the images take their place here.

    >>> import torch
    >>> teacher = Outputs(torch.zeros(2, 2), embedding=torch.eye(2))
    >>> turned = Outputs(torch.zeros(2, 2), embedding=torch.eye(2).flip(0))
    >>> AffinityMimicking(1.0, projection=None)(turned, teacher, torch.zeros(2))  # tanh(1/2)
    tensor(0.4621)
    """

    needs: ClassVar[tuple[str, ...]] = ("embedding",)
    recipe_weight: ClassVar[float] = 1.0
    minimum: ClassVar[float | None] = None  # a fresh projection is not the identity
    couples_samples: ClassVar[bool] = True

    def __init__(self, temperature: float = 0.07, projection: Projection | None = "linear") -> None:
        super().__init__(projection)
        self.temperature = at_least("temperature", temperature, 0, strictly=True)

    @full_precision
    def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        """Return the mean of both directions, a scalar; gradient to the student and to h."""
        features, targets = embeddings(student, teacher)
        targets = F.normalize(targets.detach(), dim=1)
        features = F.normalize(self.project(features, targets), dim=1)
        affinity, teacher_affinity = features @ targets.T / self.temperature, targets @ targets.T / self.temperature
        return (kl(affinity, teacher_affinity) + kl(affinity.T, teacher_affinity.T)) / 2


def kl(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the KL divergence of the softmax of rows (..., K), averaged over rows."""
    log_p, log_q = F.log_softmax(teacher, -1), F.log_softmax(student, -1)
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1).mean()
