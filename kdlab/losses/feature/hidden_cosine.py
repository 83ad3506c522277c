"""DistilBERT's cosine: hidden states point the same way (Sanh et al. 2019)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdlab.losses.functional import full_precision
from kdlab.losses.positions import counted_rows, mean_of_rows, sequence_pairs
from kdlab.outputs import Outputs


class HiddenCosine(nn.Module):
    r"""One minus the cosine of the hidden states, averaged over tokens that are no padding, summed over the layers.

    .. math:: L = \sum_i \frac{1}{N} \sum_{n=1}^{N} \left( 1 - \frac{\langle h^s_{in}, h^t_{in} \rangle}
              {\|h^s_{in}\| \|h^t_{in}\|} \right)

    0 if no token counts. Computed in float32, or in float64 for float64 layers.

    Recipe: DistilBERT weight 1 on the last hidden states, beside weight 2 on the masked words and weight 5 on
    ``ForwardKL(2.0, positions="attended")``; none for images.

    Shapes:
        layers: pairs of hidden states (B, L, D), or (B, D).
        mask: the student's, (B, L); all positions count without one.
        target: not used.

    Raises:
        InputError: no layers, unequal numbers of layers, other shapes.

    Paper: V. Sanh, L. Debut, J. Chaumond, T. Wolf, "DistilBERT, a distilled version of BERT: smaller, faster, cheaper
    and lighter", 2019, arXiv 1910.01108. Released code: ``CosineEmbeddingLoss`` over the attended tokens of the last
    layer, this value but for its 1e-12 in the norms.

    >>> student = Outputs(torch.zeros(1, 2), layers=(torch.tensor([[[1.0, 0.0], [1.0, 0.0]]]),))
    >>> teacher = Outputs(torch.zeros(1, 2), layers=(torch.tensor([[[0.0, 2.0], [2.0, 0.0]]]),))
    >>> HiddenCosine()(student, teacher, torch.zeros(1))
    tensor(0.5000)
    """

    needs: ClassVar[tuple[str, ...]] = ("layers",)
    recipe_weight: ClassVar[float] = 1.0
    couples_samples: ClassVar[bool] = True  # a mean over tokens, of which samples have different numbers

    @full_precision
    def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        """Return the sum over the layers, a scalar; gradient to the student only."""
        values = []
        for pair in sequence_pairs(student, teacher, same_width=True):
            ours, theirs = counted_rows(student, pair.student, pair.teacher.detach())
            values.append(mean_of_rows(1 - F.cosine_similarity(ours, theirs, -1)))
        return torch.stack(values).sum()
