"""Forward KL of tokens: word-level distillation (Kim and Rush 2016)."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from kdlab.losses.checks import at_least
from kdlab.losses.tokens.token_loss import Positions, TokenLoss, dots, kl_rows, log_probabilities, normalize_


class ForwardKL(TokenLoss):
    r"""Kullback-Leibler divergence from the teacher's to the student's distribution of the token, averaged over tokens.

    .. math:: L = \frac{T^2}{N} \sum_{n=1}^{N} \sum_v p_{nv} \log \frac{p_{nv}}{q_{nv}}, \qquad
              p = \mathrm{softmax}(z^t / T), \quad q = \mathrm{softmax}(z^s / T)

    over the N positions that count; 0 if none does. Covers all modes of the teacher. It is
    :class:`~kdlab.losses.SoftTargets` with a chunked form and a choice of positions. Computed in float32, or in float64
    for float64 logits.

    Recipe: DistilBERT T = 2, weight 5, ``positions="attended"``, beside weight 2 on masked words and weight 1 on
    :class:`~kdlab.losses.HiddenCosine`.

    Args:
        temperature: T, positive; the factor T^2 keeps the gradient's size when T changes.
        positions: ``"labeled"``, or ``"attended"`` for all tokens that are no padding.
        chunk_size: positions that are projected and compared at a time; ``None`` for all.

    Shapes:
        logits: (B, L, V) or (N, V), the same for both networks.
        target: labels (B, L) or (N,); positions with the ignored label do not count.

    Raises:
        InputError: a number out of range; the networks differ in vocabulary or positions.

    Paper: Y. Kim, A. M. Rush, "Sequence-Level Knowledge Distillation", EMNLP 2016, arXiv 1606.07947. DistilBERT: V.
    Sanh, L. Debut, J. Chaumond, T. Wolf, "DistilBERT, a distilled version of BERT: smaller, faster, cheaper and
    lighter", 2019, arXiv 1910.01108; its released code has this value, over all attended tokens. MiniLLM's baseline and
    DistiLLM's ``forward_kl`` give the cross-entropy: the same gradient, and the teacher's entropy more.

    >>> import torch
    >>> from kdlab.outputs import Outputs
    >>> student, teacher = Outputs(torch.tensor([[[2.0, 0.0]]])), Outputs(torch.tensor([[[0.0, 2.0]]]))
    >>> ForwardKL()(student, teacher, torch.tensor([[0]]))
    tensor(1.5232)
    """

    needs: ClassVar[tuple[str, ...]] = ("logits",)
    recipe_weight: ClassVar[float] = 0.5

    def __init__(
        self, temperature: float = 1.0, positions: Positions = "labeled", chunk_size: int | None = None
    ) -> None:
        super().__init__(positions, chunk_size)
        self.temperature = at_least("temperature", temperature, 0, strictly=True)

    def per_row(self, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        """Return the divergence of every row, (n,)."""
        log_p, log_q = (log_probabilities(x, self.temperature) for x in (teacher, student))
        return kl_rows(log_p, log_q) * self.temperature**2

    def row_gradient(self, student: Tensor, teacher: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sum over rows and its gradient T (q - p)."""
        log_q, log_p = (normalize_(x, self.temperature) for x in (student, teacher))
        p = log_p.exp()
        value = dots(p, log_p.sub_(log_q)).sum() * self.temperature**2
        return value, log_q.exp_().sub_(p).mul_(self.temperature)
