"""Cross-entropy of token labels as a task loss, in chunks if asked for."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdlab.errors import InputError
from kdlab.losses.checks import at_least
from kdlab.losses.tokens.chunked import chunked_sum
from kdlab.losses.tokens.token_loss import checked_chunk_size


class TokenCrossEntropy(nn.Module):
    r"""Cross-entropy of language models and token classifiers: classes on the last axis, the mean over labeled tokens.

    .. math:: L = -\frac{1}{N} \sum_{n: y_n \ne ignored} \log q_{n y_n}, \qquad q = \mathrm{softmax}(z)

    0 if no token has a label. Computed in float32, or in float64 for float64 logits. Labels are compared position by
    position; those of a causal language model are shifted by the data (:func:`next_token_labels`).

    Args:
        ignore_index: the label of tokens that do not count.
        label_smoothing: see :class:`torch.nn.CrossEntropyLoss`, at least 0 and at most 1.
        chunk_size: tokens that are projected and compared at a time (see :class:`~kdlab.losses.tokens.TokenLoss`), for
            a step that never computes all logits; ``None`` for all.

    Shapes:
        logits: (..., V).
        target: (...) int64.

    Raises:
        InputError: a number out of range; labels of another shape.

    >>> loss = TokenCrossEntropy()
    >>> loss(torch.tensor([[[2.0, 0.0], [0.0, 0.0]]]), torch.tensor([[0, -100]]))
    tensor(0.1269)
    """

    target_kind: ClassVar[str] = "classes"
    class_axis: ClassVar[int] = -1

    def __init__(self, ignore_index: int = -100, label_smoothing: float = 0.0, chunk_size: int | None = None) -> None:
        super().__init__()
        self.ignore_index = ignore_index
        self.label_smoothing = at_least("label_smoothing", label_smoothing, 0, most=1)
        self.chunk_size = checked_chunk_size(chunk_size)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the mean over the labeled tokens, a scalar."""
        if logits.shape[:-1] != target.shape:
            wanted = tuple(logits.shape[:-1])
            raise InputError(f"Labels of logits {tuple(logits.shape)} must be {wanted}, not {tuple(target.shape)}.")
        counted = target.flatten() != self.ignore_index
        labels = target.flatten()[counted]
        rows = (logits.flatten(0, -2) if logits.dim() > 2 else logits)[counted]

        def compute(part: Tensor, chosen: slice) -> Tensor:
            part = part.to(torch.promote_types(part.dtype, torch.float32))
            return F.cross_entropy(part, labels[chosen], reduction="sum", label_smoothing=self.label_smoothing)

        def gradient(part: Tensor, chosen: slice) -> tuple[Tensor, Tensor]:
            return label_gradient(part.to(torch.promote_types(part.dtype, torch.float32)), labels[chosen])

        fast = gradient if not self.label_smoothing and rows.dtype in (torch.float32, torch.float64) else None
        return chunked_sum(compute, rows, self.chunk_size, fast) / max(len(labels), 1)


def label_gradient(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the summed cross-entropy of rows of logits (n, V), which are overwritten, and its gradient q - onehot."""
    places = labels[:, None]
    of_labels, most = logits.gather(1, places), logits.amax(-1, keepdim=True)
    q = logits.sub_(most).exp_()
    total = q.sum(-1, keepdim=True)
    value = (total.log() + most - of_labels).sum()
    return value, q.div_(total).scatter_add_(1, places, -torch.ones_like(places, dtype=q.dtype))


def next_token_labels(tokens: Tensor, mask: Tensor | None = None, ignore_index: int = -100) -> Tensor:
    """Return the labels of a causal language model: at each position the token that follows.

    With them logits, labels and masks agree position by position, and no loss shifts anything. The last position, and
    one before a token that does not count, have no label.

    Args:
        tokens: (B, L) int64 token ids, or labels as Hugging Face has them (equal to the ids, ``ignore_index`` where
            nothing is to be learned).
        mask: (B, L), 1 where a token is no padding.
        ignore_index: the label of positions that do not count.

    >>> next_token_labels(torch.tensor([[5, 6, 7, 0]]), torch.tensor([[1, 1, 1, 0]]))
    tensor([[   6,    7, -100, -100]])
    """
    if mask is not None:
        tokens = tokens.masked_fill(mask == 0, ignore_index)
    return F.pad(tokens[..., 1:], (0, 1), value=ignore_index)
