"""Skew KL (DistiLLM): divergence from a mixture of both distributions (Ko et al. 2024)."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from torch import Tensor

from kdlab.losses.checks import at_least, one_of
from kdlab.losses.tokens.token_loss import Positions, TokenLoss, kl_rows, log_probabilities


class SkewKL(TokenLoss):
    r"""Kullback-Leibler divergence of one network's distribution from its mixture with the other's.

    .. math:: L_{forward} = \mathrm{KL}(p \,\|\, \alpha p + (1 - \alpha) q), \qquad
              L_{reverse} = \mathrm{KL}(q \,\|\, (1 - \alpha) p + \alpha q)

    with p of the teacher and q of the student, averaged over the N positions that count; 0 if none does. alpha is the
    share of the distribution on the left, so alpha = 0 is the plain forward or reverse KL. Computed in float32, or in
    float64 for float64 logits.

    Recipe: alpha = 0.1, weight 1, both directions (DistiLLM); none for images.

    Args:
        alpha: the share of the distribution on the left, at least 0 and below 1.
        direction: ``"forward"`` or ``"reverse"``.
        positions: ``"labeled"``, or ``"attended"`` for all tokens that are no padding.
        chunk_size: positions that are projected and compared at a time; ``None`` for all.

    Shapes:
        logits: (B, L, V) or (N, V), the same for both networks.
        target: labels (B, L) or (N,); positions with the ignored label do not count.

    Raises:
        InputError: a number out of range; the networks differ in vocabulary or positions.

    Paper: J. Ko, S. Kim, T. Chen, S.-Y. Yun, "DistiLLM: Towards Streamlined Distillation for Large Language Models",
    ICML 2024, arXiv 2402.03898. Released code: ``skewed_reverse_kl`` has this value; ``skewed_forward_kl`` is the
    cross-entropy, which is larger by the teacher's entropy and has the same gradient.

    >>> import torch
    >>> from kdlab.outputs import Outputs
    >>> student, teacher = Outputs(torch.tensor([[[2.0, 0.0]]])), Outputs(torch.tensor([[[0.0, 2.0]]]))
    >>> SkewKL(alpha=0.1)(student, teacher, torch.tensor([[0]]))
    tensor(1.0988)
    """

    needs: ClassVar[tuple[str, ...]] = ("logits",)
    recipe_weight: ClassVar[float] = 1.0

    def __init__(
        self,
        alpha: float = 0.1,
        direction: Literal["forward", "reverse"] = "forward",
        positions: Positions = "labeled",
        chunk_size: int | None = None,
    ) -> None:
        super().__init__(positions, chunk_size)
        self.alpha = at_least("alpha", alpha, 0, below=1)
        self.direction = one_of("direction", direction, ("forward", "reverse"))

    def per_row(self, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        """Return the divergence of every row, (n,)."""
        left, right = log_probabilities(teacher), log_probabilities(student)
        if self.direction == "reverse":
            left, right = right, left
        if not self.alpha:
            return kl_rows(left, right)
        mixture = torch.logaddexp(left + math.log(self.alpha), right + math.log1p(-self.alpha))
        return kl_rows(left, mixture)
