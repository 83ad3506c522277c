"""PKD: normalized [CLS] states of intermediate layers (Sun et al. 2019)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdlab.losses.functional import full_precision
from kdlab.losses.positions import mean_of_rows, sequence_pairs
from kdlab.outputs import Outputs


class PKD(nn.Module):
    r"""Mean squared difference of the normalized states of the first token, averaged over the layers.

    .. math:: L = \frac{1}{B M D} \sum_{b,i} \left\| \frac{h^s_{bi}}{\|h^s_{bi}\|} - \frac{h^t_{bi}}{\|h^t_{bi}\|}
              \right\|^2

    with M pairs of layers of width D. PKD-Skip pairs a student of 6 blocks with the teacher's 2, 4, 6, 8 and 10,
    PKD-Last with 7 to 11; the last block is left to the logits. Computed in float32, or in float64 for float64 layers.

    Recipe: weight 100 (of 10, 100, 500, 1000) beside ``SoftTargets`` at T = 10 with weight 0.5 and weight 0.5 on the
    labels (grids of the paper; UNVERIFIED); none for images.

    Shapes:
        layers: pairs of hidden states (B, L, D), of which the first position is taken, or (B, D).
        target: not used.

    Raises:
        InputError: no layers, unequal numbers of layers, other shapes.

    Paper: S. Sun, Y. Cheng, Z. Gan, J. Liu, "Patient Knowledge Distillation for BERT Model Compression", EMNLP 2019,
    arXiv 1908.09355, which sums over layers and widths. Follows the released ``patience_loss`` (normalized), the mean
    over all elements; its result is then rounded to float16, here not.

    >>> student = Outputs(torch.zeros(1, 2), layers=(torch.tensor([[[3.0, 0.0]]]),))
    >>> teacher = Outputs(torch.zeros(1, 2), layers=(torch.tensor([[[0.0, 5.0]]]),))
    >>> PKD()(student, teacher, torch.zeros(1))
    tensor(1.)
    """

    needs: ClassVar[tuple[str, ...]] = ("layers",)
    recipe_weight: ClassVar[float] = 100.0

    @full_precision
    def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        """Return the mean over layers and samples, a scalar; gradient to the student only."""
        values = []
        for pair in sequence_pairs(student, teacher, same_width=True):
            ours, theirs = (
                F.normalize(x if x.dim() == 2 else x[:, 0], dim=-1) for x in (pair.student, pair.teacher.detach())
            )
            values.append(mean_of_rows((ours - theirs).square()))
        return torch.stack(values).mean()
