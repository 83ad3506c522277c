"""Several texts in one row: which go together, and the attention mask that keeps them apart."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

BLOCKED = -1e4
"""What is added to the attention score of a pair of positions that must not meet: exp of it is 0 in every dtype."""


def packed_rows(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Put texts into rows of at most ``room`` tokens, the longest first, each into the first row where it fits.

    >>> packed_rows([3, 5, 2, 4], 7)
    [[1, 2], [3, 0]]
    """
    rows: list[list[int]] = []
    left: list[int] = []
    for text in sorted(range(len(lengths)), key=lambda text: (-lengths[text], text)):
        row = next((row for row, space in enumerate(left) if space >= lengths[text]), len(rows))
        if row == len(rows):
            rows.append([])
            left.append(room)
        rows[row].append(text)
        left[row] -= lengths[text]
    return rows


def block_mask(texts: Tensor, causal: bool) -> Tensor:
    """Return the additive attention mask (R, 1, L, L) float32 of packed rows: 0 within a text, else :data:`BLOCKED`.

    A position that is padding attends to the first position of its row alone and not to itself, so that the diagonal
    tells which positions count (:attr:`kdlab.outputs.Batch.mask`) and no row of scores is blocked entirely.

    Args:
        texts: (R, L) int64, which text a position belongs to; -1 for padding.
        causal: whether a position attends to those up to itself alone.
    """
    together = (texts[:, :, None] == texts[:, None, :]) & (texts >= 0)[:, :, None]
    if causal:
        together = together.tril()
    together[:, :, 0] |= texts < 0
    return torch.where(together, 0.0, BLOCKED)[:, None]
