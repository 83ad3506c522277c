"""MiniLMv2: query, key and value relations of relation heads (Wang et al. 2021)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from kdlab.losses.feature.last_map import whole_number
from kdlab.losses.functional import full_precision
from kdlab.losses.positions import mask_of, relation, relation_kl, same_positions, split_heads, states_of
from kdlab.losses.relation.minilm import NAMES
from kdlab.outputs import Outputs


class MiniLMv2(nn.Module):
    r"""Kullback-Leibler divergence of the relations among queries, among keys and among values.

    .. math:: L = \sum_{X \in \{Q, K, V\}} \frac{1}{A_r N} \sum_{a,n} \mathrm{KL}(R^t_{an} \| R^s_{an}), \qquad
              R = \mathrm{softmax}(X_a X_a^T / \sqrt{d_r})

    The heads of each network are put together and cut into A_r relation heads of width d_r, so the networks need not
    have as many heads; N tokens are no padding, and padded keys have no probability. 0 if no token counts. Computed in
    float32, or in float64 for float64 layers.

    Recipe: weight 1, weight 0 on the labels, 48 relation heads, the teacher's last layer, of large teachers an
    upper-middle one; none for images.

    Args:
        relation_heads: A_r, at least 1, a divisor of both widths.

    Shapes:
        layers: query, key and value of one layer of each network in this order: (B, L, D), or (B, A, L, d).
        mask: the student's, (B, L); all positions count without one.
        target: not used.

    Raises:
        InputError: another number of layers, widths that ``relation_heads`` does not divide, other lengths.

    Paper: W. Wang, H. Bao, S. Huang, L. Dong, F. Wei, "MiniLMv2: Multi-Head Self-Attention Relation Distillation for
    Compressing Pretrained Transformers", Findings of ACL 2021, arXiv 2012.15828. No training code is public.

    >>> student = Outputs(torch.zeros(1, 2), layers=3 * (torch.eye(4)[None],))
    >>> MiniLMv2(relation_heads=2)(student, student, torch.zeros(1))
    tensor(0.)
    """

    needs: ClassVar[tuple[str, ...]] = ("layers",)
    recipe_weight: ClassVar[float] = 1.0
    couples_samples: ClassVar[bool] = True  # a mean over tokens, of which samples have different numbers
    layer_count: ClassVar[int] = 3

    def __init__(self, relation_heads: int = 48) -> None:
        super().__init__()
        self.relation_heads = whole_number("relation_heads", relation_heads)

    @full_precision
    def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        """Return the sum over queries, keys and values, a scalar; gradient to the student only."""
        sides = states_of(student, "student", NAMES), states_of(teacher.detach(), "teacher", NAMES)
        values = []
        for ours, theirs, name in zip(*sides, NAMES, strict=True):
            ours, theirs = (split_heads(x, self.relation_heads, name) for x in (ours, theirs))
            same_positions(ours, theirs)
            mask = mask_of(student, ours.shape[2])
            values.append(relation_kl(relation(ours, ours, mask), relation(theirs, theirs, mask), mask))
        return torch.stack(values).sum()
