"""TinyBERT's hidden states: projected to the teacher's (Jiao et al. 2020)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdlab.errors import InputError
from kdlab.losses.functional import full_precision
from kdlab.losses.lazy import Lazy
from kdlab.losses.positions import counted_rows, mean_of_rows, sequence_pairs
from kdlab.outputs import Outputs


class TinyBERTHidden(Lazy):
    r"""Mean squared difference of projected hidden states and the teacher's, summed over the layers.

    .. math:: L = \sum_i \frac{1}{N D_t} \sum_{n=1}^{N} \| W h^s_{in} + b - h^t_{in} \|^2

    over the N tokens that are no padding; 0 if none counts. The embedding layer is the first pair
    (``hidden_states.0``), the layers of the student's block i and of the teacher's block g(i) the others. One W and b
    serve all layers and are trained; without ``project`` the states are compared as they are. Computed in float32, or
    in float64 for float64 layers.

    Recipe: weight 1, with weight 1 on :class:`~kdlab.losses.TinyBERTAttention` and weight 0 on the labels, then the
    prediction alone; none for images.

    Args:
        project: train a projection; ``False`` needs equal widths.
        shared: one projection for all layers, as released; ``False`` has one for each.

    Shapes:
        layers: pairs of hidden states (B, L, Ds) and (B, L, Dt), or (B, Ds) and (B, Dt).
        mask: the student's, (B, L); all positions count without one.
        target: not used.

    Raises:
        InputError: no layers, unequal numbers of layers, other lengths, other widths where they must be the same.

    Paper: X. Jiao, Y. Yin, L. Shang, X. Jiang, X. Chen, L. Li, F. Wang, Q. Liu, "TinyBERT: Distilling BERT for Natural
    Language Understanding", Findings of EMNLP 2020, arXiv 1909.10351; there the embedding has its own matrix. Released
    code: one ``fit_dense`` with bias for all layers, and the mean over all positions, padding included; without a mask
    this is that value.

    >>> student = Outputs(torch.zeros(1, 2), layers=(torch.zeros(1, 3, 4),))
    >>> teacher = Outputs(torch.zeros(1, 2), layers=(torch.ones(1, 3, 6),))
    >>> loss = TinyBERTHidden()
    >>> loss(student, teacher, torch.zeros(1)).shape, loss.projections[0]
    (torch.Size([]), Linear(in_features=4, out_features=6, bias=True))
    """

    needs: ClassVar[tuple[str, ...]] = ("layers",)
    recipe_weight: ClassVar[float] = 1.0
    couples_samples: ClassVar[bool] = True  # a mean over tokens, of which samples have different numbers
    minimum: ClassVar[float | None] = None  # a fresh projection is not the identity

    def __init__(self, project: bool = True, shared: bool = True) -> None:
        super().__init__()
        self.project, self.shared = project, shared

    def build(self, *widths: tuple[int, int]) -> None:
        """Build the projections, from (student width, teacher width) of each."""
        self.projections = nn.ModuleList(nn.Linear(*each) for each in widths)

    @full_precision
    def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        """Return the sum over the layers, a scalar; gradient to the student and to the projections."""
        pairs = sequence_pairs(student, teacher, same_width=not self.project)
        if self.project:
            widths = [(pair.student.shape[-1], pair.teacher.shape[-1]) for pair in pairs]
            if self.shared and len(set(widths)) > 1:
                raise InputError(f"One projection cannot serve layers of widths {widths}: set shared to false.")
            self.materialize(pairs[0].student, *(widths[:1] if self.shared else widths))
        values = []
        for number, pair in enumerate(pairs):
            ours, theirs = counted_rows(student, pair.student, pair.teacher.detach())
            if self.project:
                ours = self.projections[0 if self.shared else number](ours)
            values.append(mean_of_rows(F.mse_loss(ours, theirs, reduction="none")))
        return torch.stack(values).sum()
