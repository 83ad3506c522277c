"""TinyBERT's attention: the scores of each head (Jiao et al. 2020)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from kdlab.errors import InputError
from kdlab.losses.checks import Pair, layer_pairs
from kdlab.losses.feature.last_map import whole_number
from kdlab.losses.functional import full_precision
from kdlab.losses.positions import mask_of, mean_of_rows, split_heads
from kdlab.outputs import Outputs

PADDED = -100.0
"""Scores up to this are those of padding, which the released code sets to 0."""


class TinyBERTAttention(nn.Module):
    r"""Mean squared difference of the attention matrices of all heads, summed over the layers.

    .. math:: L = \sum_i \frac{1}{h N} \sum_{a=1}^{h} \sum_{(l, m)} (A^s_{ialm} - A^t_{ialm})^2

    over the N pairs (l, m) of positions of a sample that are both no padding; 0 if there is none. The paper compares
    scores before the softmax. Hugging Face's models return the probabilities (``attentions.3``, with
    ``attn_implementation="eager"``); with ``heads`` the layers are queries and keys in turn
    (``...attention.self.query``, ``...attention.self.key``), of which the scores Q K^T / sqrt(d) are computed. Computed
    in float32, or in float64 for float64 layers.

    Recipe: weight 1, with weight 1 on :class:`~kdlab.losses.TinyBERTHidden` and weight 0 on the labels, then the
    prediction alone; none for images.

    Args:
        heads: number of heads, where the layers are queries and keys; ``None`` where they are matrices.

    Shapes:
        layers: pairs of matrices (B, h, L, L), scores or probabilities; or queries and keys in turn, (B, L, h * d).
        mask: the student's, (B, L). Without one all pairs count, and scores of -100 and less are set to 0 on both
            sides, as released.
        target: not used.

    Raises:
        InputError: no layers, unequal numbers of layers, other heads or lengths.

    Paper: X. Jiao, Y. Yin, L. Shang, X. Jiang, X. Chen, L. Li, F. Wang, Q. Liu, "TinyBERT: Distilling BERT for Natural
    Language Understanding", Findings of EMNLP 2020, arXiv 1909.10351. Released code: the element mean over all entries,
    padded keys at 0 and padded queries counted; without a mask this is that value.

    >>> student = Outputs(torch.zeros(1, 2), layers=(torch.zeros(1, 2, 3, 3),))
    >>> teacher = Outputs(torch.zeros(1, 2), layers=(torch.ones(1, 2, 3, 3),))
    >>> TinyBERTAttention()(student, teacher, torch.zeros(1))
    tensor(1.)
    """

    needs: ClassVar[tuple[str, ...]] = ("layers",)
    recipe_weight: ClassVar[float] = 1.0
    couples_samples: ClassVar[bool] = True  # a mean over tokens, of which samples have different numbers

    def __init__(self, heads: int | None = None) -> None:
        super().__init__()
        self.heads = None if heads is None else whole_number("heads", heads)

    @full_precision
    def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        """Return the sum over the layers, a scalar; gradient to the student only."""
        pairs = layer_pairs(student, teacher)
        if self.heads is not None:
            pairs = self._scored(pairs)
        values = []
        for pair in pairs:
            ours, theirs = pair.student, pair.teacher.detach()
            if ours.dim() != 4 or ours.shape != theirs.shape or ours.shape[2] != ours.shape[3]:
                raise InputError(
                    f"TinyBERTAttention compares matrices (B, heads, L, L) of as many heads, but {pair.shapes}."
                )
            if (mask := mask_of(student, ours.shape[3])) is None:
                ours, theirs = (torch.where(x <= PADDED, 0.0, x) for x in (ours, theirs))
                values.append(mean_of_rows((ours - theirs).square()))
                continue
            both = (mask[:, :, None] & mask[:, None])[:, None].expand_as(ours)
            values.append(mean_of_rows((ours[both] - theirs[both]).square()))
        return torch.stack(values).sum()

    def _scored(self, pairs: list[Pair]) -> list[Pair]:
        """Return the pairs of score matrices of queries and keys in turn."""
        if len(pairs) % 2:
            raise InputError(f"With heads the layers are queries and keys in turn, but {len(pairs)} are tapped.")
        scored = []
        for query, key in zip(pairs[::2], pairs[1::2], strict=True):
            ours = self._scores(query.student, key.student, query.student_name)
            theirs = self._scores(query.teacher, key.teacher, query.teacher_name)
            scored.append(Pair(ours, theirs, query.student_name, query.teacher_name))
        return scored

    def _scores(self, query: Tensor, key: Tensor, name: str) -> Tensor:
        left, right = (split_heads(x, self.heads or 1, name) for x in (query, key))
        scores: Tensor = left @ right.mT / left.shape[-1] ** 0.5
        return scores
