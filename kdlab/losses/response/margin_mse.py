"""MarginMSE: score margins of positive and negative passages (Hofstätter et al. 2020)."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from kdlab.losses.functional import full_precision
from kdlab.losses.response.logits import PerSample, sample_logits
from kdlab.outputs import Outputs


class MarginMSE(PerSample):
    r"""Mean squared difference of the margins between the first candidate of a query and the others.

    .. math:: L = \frac{1}{B (K - 1)} \sum_b \sum_{k=2}^{K} \left( (z^s_{b1} - z^s_{bk}) - (z^t_{b1} - z^t_{bk})
              \right)^2

    Scores may have any scale and any offset of a query. Computed in float32, or in float64 for float64 logits.

    Recipe: weight 1, weight 0 on the labels, for rankers; none for images.

    Shapes:
        logits: (B, K) scores of K candidates of each query, the positive one first.
        target: not used.

    Raises:
        InputError: the networks differ in candidates or batch, fewer than 2 candidates, an empty batch.

    Paper: S. Hofstätter, S. Althammer, M. Schröder, M. Sertkan, A. Hanbury, "Improving Efficient Neural Ranking Models
    with Cross-Architecture Knowledge Distillation", 2020, arXiv 2010.02666. The value of sentence-transformers'
    ``MarginMSELoss``, also with several negatives.

    >>> import torch
    >>> student, teacher = Outputs(torch.tensor([[2.0, 0.0]])), Outputs(torch.tensor([[9.0, 6.0]]))
    >>> MarginMSE()(student, teacher, torch.tensor([0]))
    tensor(1.)
    """

    needs: ClassVar[tuple[str, ...]] = ("logits",)
    recipe_weight: ClassVar[float] = 1.0

    @full_precision
    def per_sample(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        """Return the mean over the margins of every query, (B,)."""
        margins = [scores[:, :1] - scores[:, 1:] for scores in sample_logits(student, teacher)]
        return (margins[0] - margins[1]).square().mean(1)
