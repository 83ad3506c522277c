"""MiniLM: attention and value relations of the last layer (Wang et al. 2020)."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from kdlab.losses.feature.last_map import whole_number
from kdlab.losses.functional import full_precision
from kdlab.losses.positions import mask_of, relation, relation_kl, same_positions, split_heads, states_of
from kdlab.outputs import Outputs

NAMES = ("query", "key", "value")


class MiniLM(nn.Module):
    r"""Kullback-Leibler divergence of attention distributions and of value relations, averaged over heads and tokens.

    .. math:: L = \frac{1}{A N} \sum_{a,n} \mathrm{KL}(A^t_{an} \| A^s_{an}) + \frac{1}{A N} \sum_{a,n}
              \mathrm{KL}(R^t_{an} \| R^s_{an}), \qquad A = \mathrm{softmax}(Q K^T / \sqrt{d}), \quad
              R = \mathrm{softmax}(V V^T / \sqrt{d})

    over A heads and the N tokens that are no padding; padded keys have no probability. Both networks need as many
    heads; the widths may differ, with d the width of a head of each. 0 if no token counts. Computed in float32, or in
    float64 for float64 layers.

    Recipe: weight 1, weight 0 on the labels, the last layer, on unlabeled text; none for images.

    Args:
        heads: number of attention heads of both networks, at least 1.

    Shapes:
        layers: query, key and value of one layer of each network in this order (of BERT
            ``...attention.self.query``, ``.key`` and ``.value``): (B, L, A * d), or (B, A, L, d).
        mask: the student's, (B, L); all positions count without one.
        target: not used.

    Raises:
        InputError: another number of layers, widths that ``heads`` does not divide, other lengths.

    Paper: W. Wang, F. Wei, L. Dong, H. Bao, N. Yang, M. Zhou, "MiniLM: Deep Self-Attention Distillation for
    Task-Agnostic Compression of Pre-Trained Transformers", NeurIPS 2020, arXiv 2002.10957. No training code is public.

    >>> import torch
    >>> student = Outputs(torch.zeros(1, 2), layers=3 * (torch.eye(4)[None],))
    >>> MiniLM(heads=2)(student, student, torch.zeros(1))
    tensor(0.)
    """

    needs: ClassVar[tuple[str, ...]] = ("layers",)
    recipe_weight: ClassVar[float] = 1.0
    couples_samples: ClassVar[bool] = True  # a mean over tokens, of which samples have different numbers
    layer_count: ClassVar[int] = 3

    def __init__(self, heads: int = 12) -> None:
        super().__init__()
        self.heads = whole_number("heads", heads)

    @full_precision
    def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        """Return the sum of both divergences, a scalar; gradient to the student only."""
        ours, theirs = (
            [split_heads(x, self.heads, name) for x, name in zip(states_of(outputs, side, NAMES), NAMES, strict=True)]
            for outputs, side in ((student, "student"), (teacher.detach(), "teacher"))
        )
        for one, other in zip(ours, theirs, strict=True):
            same_positions(one, other)
        mask = mask_of(student, ours[0].shape[2])
        attention = relation_kl(relation(ours[0], ours[1], mask), relation(theirs[0], theirs[1], mask), mask)
        return attention + relation_kl(relation(ours[2], ours[2], mask), relation(theirs[2], theirs[2], mask), mask)
