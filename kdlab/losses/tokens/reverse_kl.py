"""Reverse KL of tokens: mode-seeking distillation (Gu et al. 2024)."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from kdlab.losses.checks import at_least
from kdlab.losses.tokens.token_loss import Positions, TokenLoss, dots, kl_rows, log_probabilities, normalize_


class ReverseKL(TokenLoss):
    r"""Kullback-Leibler divergence from the student's to the teacher's distribution of the token, averaged over tokens.

    .. math:: L = \frac{T^2}{N} \sum_{n=1}^{N} \sum_v q_{nv} \log \frac{q_{nv}}{p_{nv}}, \qquad
              p = \mathrm{softmax}(z^t / T), \quad q = \mathrm{softmax}(z^s / T)

    over the N positions that count; 0 if none does. Seeks the teacher's largest modes: the student loses where it puts
    probability that the teacher does not. The gradient goes through q on both places. Computed in float32, or in
    float64 for float64 logits.

    Recipe: weight 1, T = 1, for language models; none for images.

    Args:
        temperature: T, positive; the factor T^2 keeps the gradient's size when T changes.
        positions: ``"labeled"``, or ``"attended"`` for all tokens that are no padding.
        chunk_size: positions that are projected and compared at a time; ``None`` for all.

    Shapes:
        logits: (B, L, V) or (N, V), the same for both networks.
        target: labels (B, L) or (N,); positions with the ignored label do not count.

    Raises:
        InputError: a number out of range; the networks differ in vocabulary or positions.

    Paper: Y. Gu, L. Dong, F. Wei, M. Huang, "MiniLLM: Knowledge Distillation of Large Language Models", ICLR 2024,
    arXiv 2306.08543, which minimizes it over whole sequences that the student samples, by policy gradient; this is the
    term of a single step, on given sequences. DistiLLM's ``reverse_kl`` and TRL with beta = 1 have this value.

    >>> import torch
    >>> from kdlab.outputs import Outputs
    >>> student, teacher = Outputs(torch.tensor([[[3.0, 0.0]]])), Outputs(torch.tensor([[[0.0, 1.0]]]))
    >>> ReverseKL()(student, teacher, torch.tensor([[0]]))
    tensor(1.0750)
    """

    needs: ClassVar[tuple[str, ...]] = ("logits",)
    recipe_weight: ClassVar[float] = 1.0

    def __init__(
        self, temperature: float = 1.0, positions: Positions = "labeled", chunk_size: int | None = None
    ) -> None:
        super().__init__(positions, chunk_size)
        self.temperature = at_least("temperature", temperature, 0, strictly=True)

    def per_row(self, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        """Return the divergence of every row, (n,)."""
        log_p, log_q = (log_probabilities(x, self.temperature) for x in (teacher, student))
        return kl_rows(log_q, log_p) * self.temperature**2

    def row_gradient(self, student: Tensor, teacher: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sum over rows and its gradient T q (log q - log p - KL)."""
        log_q, log_p = (normalize_(x, self.temperature) for x in (student, teacher))
        q = log_q.exp()
        kl = dots(q, log_q.sub_(log_p))
        return kl.sum() * self.temperature**2, log_q.sub_(kl).mul_(q).mul_(self.temperature)
