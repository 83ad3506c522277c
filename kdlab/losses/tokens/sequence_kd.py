"""Sequence-level KD: likelihood of the teacher's own sequences (Kim and Rush 2016)."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from kdlab.errors import InputError
from kdlab.losses.tokens.cross_entropy import label_gradient
from kdlab.losses.tokens.token_loss import TokenLoss


class SequenceKD(TokenLoss):
    r"""Cross-entropy of the student with tokens that the teacher generated, averaged over tokens.

    .. math:: L = -\frac{1}{N} \sum_{n=1}^{N} \log q_{n \hat{y}_n}, \qquad q = \mathrm{softmax}(z^s)

    The batch carries the teacher's decoded sequences as inputs and labels (shifted once, prompts ignored): from a file
    of prompts and completions (:class:`~kdlab.data.TextData` with ``pair``), or generated in training
    (:class:`~kdlab.teaching.OnPolicy` with ``generator="teacher"``). The teacher itself is not
    read. It is the task loss where all labels are the teacher's; as a knowledge it has a weight and a schedule of its
    own. 0 if no position counts. Computed in float32, or in float64 for float64 logits.

    Recipe: weight 1 without other terms, on sequences decoded by beam search; none for images.

    Args:
        chunk_size: positions that are projected and compared at a time; ``None`` for all.

    Shapes:
        logits: (B, L, V) or (N, V).
        target: (B, L) or (N,) integer tokens; the ignored label does not count.

    Raises:
        InputError: labels that are no tokens, or beyond the vocabulary.

    Paper: Y. Kim, A. M. Rush, "Sequence-Level Knowledge Distillation", EMNLP 2016, arXiv 1606.07947.

    >>> import torch
    >>> from kdlab.outputs import Outputs
    >>> student = Outputs(torch.tensor([[[2.0, 0.0], [0.0, 0.0]]]))
    >>> SequenceKD()(student, Outputs(torch.zeros(1, 2, 2)), torch.tensor([[0, -100]]))
    tensor(0.1269)
    """

    needs: ClassVar[tuple[str, ...]] = ("logits", "classes")
    recipe_weight: ClassVar[float] = 1.0
    minimum: ClassVar[float | None] = None

    def __init__(self, chunk_size: int | None = None) -> None:
        super().__init__(chunk_size=chunk_size)

    def per_row(self, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        """Return the cross-entropy of every row, (n,)."""
        return F.cross_entropy(student, _tokens(target, student), reduction="none")

    def row_gradient(self, student: Tensor, teacher: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sum over rows and its gradient q - onehot."""
        return label_gradient(student, _tokens(target, student))


def _tokens(target: Tensor, logits: Tensor) -> Tensor:
    if target.is_floating_point() or target.shape != logits.shape[:1]:
        raise InputError(f"SequenceKD needs one token for each position, not {target.dtype} {tuple(target.shape)}.")
    return target.long()
