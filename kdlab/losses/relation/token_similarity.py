"""Token similarity: similarities of the patches of an image among each other (lightly-train 2026)."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from kdlab.losses.checks import at_least
from kdlab.losses.feature.positions_pair import vectors
from kdlab.losses.functional import full_precision
from kdlab.losses.relation.affinity_mimicking import kl
from kdlab.outputs import Outputs


class TokenSimilarity(nn.Module):
    r"""KL divergence of the similarities of every patch to the patches of the same image.

    .. math:: L = \frac{1}{B N} \sum_{b, n} KL\left( \sigma(\hat t_{bn} \cdot \hat t_{bm} / \tau)_m \,\|\,
              \sigma(\hat s_{bn} \cdot \hat s_{bm} / \tau)_m \right), \qquad \hat x = x / \|x\|

    with the softmax :math:`\sigma` over the N patches m of the image. Widths may differ; a student's map is resized to
    the teacher's. 0 where both networks have the same similarities. Needs no labels. Computed in float32, or in float64
    for float64 layers.

    Recipe: weight 1 beside weight 1 on :class:`QueueSimilarity`.

    Args:
        temperature: :math:`\tau`, positive.

    Shapes:
        embedding: one tapped layer of each network: tokens (B, N, D), or maps (B, D, h, w).
        target: not used.

    Raises:
        InputError: a number out of range, layers without common positions.

    Paper: none; the objective is that of lightly-train 0.18 (``distillationv3``), written from its formula.

    >>> import torch
    >>> student, teacher = (Outputs(torch.zeros(1, 2), layers=(torch.tensor([x]),)) for x in (
    ...     [[1.0, 0.0], [1.0, 0.0]], [[1.0, 0.0], [0.0, 1.0]]))
    >>> TokenSimilarity(1.0)(student, teacher, torch.zeros(1))  # log 2 less the entropy of softmax(1, 0)
    tensor(0.1109)
    """

    needs: ClassVar[tuple[str, ...]] = ("layers",)
    recipe_weight: ClassVar[float] = 1.0
    layer_count: ClassVar[int] = 1

    def __init__(self, temperature: float = 0.07) -> None:
        super().__init__()
        self.temperature = at_least("temperature", temperature, 0, strictly=True)

    @full_precision
    def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        """Return the mean over samples and patches, a scalar; gradient to the student."""
        sides = (F.normalize(tokens, dim=2) for tokens in vectors(student, teacher))
        similar, teacher_similar = (tokens @ tokens.transpose(1, 2) / self.temperature for tokens in sides)
        return kl(similar, teacher_similar.detach())
