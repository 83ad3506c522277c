"""Generalized Jensen-Shannon divergence (GKD): between forward and reverse KL (Agarwal et al. 2024)."""

from __future__ import annotations

import logging
import math
from typing import ClassVar

import torch
from torch import Tensor

from kdlab.losses.checks import at_least
from kdlab.losses.context import Context
from kdlab.losses.tokens.token_loss import Positions, TokenLoss, dots, kl_rows, log_probabilities, normalize_

_log = logging.getLogger("kdlab.losses")


class GeneralizedJSD(TokenLoss):
    r"""Divergence of both distributions from their mixture, averaged over tokens.

    .. math:: L = \beta \, \mathrm{KL}(p \,\|\, m) + (1 - \beta) \, \mathrm{KL}(q \,\|\, m), \qquad
              m = \beta p + (1 - \beta) q

    with p of the teacher and q of the student. beta near 0 goes to the forward KL and near 1 to the reverse KL, in
    shape: the value itself goes to 0 there, as beta * KL(p || q) and (1 - beta) * KL(q || p). Exactly at 0 and 1 the
    loss is the forward and the reverse KL, without that factor, as in TRL and Liger, so weights near the ends are not
    those at the ends. DistiLLM and KDFlow have 1 - beta in place of beta. No factor T^2. Computed in float32, or in
    float64 for float64 logits.

    Recipe: beta = 0.5, weight 1 (GKD; the best beta depends on the task); none for images.

    Args:
        beta: the teacher's share of the mixture, from 0 to 1; 0 is the forward KL, 1 the reverse KL.
        temperature: T, positive, of both distributions.
        positions: ``"labeled"``, or ``"attended"`` for all tokens that are no padding.
        chunk_size: positions that are projected and compared at a time; ``None`` for all.

    Shapes:
        logits: (B, L, V) or (N, V), the same for both networks.
        target: labels (B, L) or (N,); positions with the ignored label do not count.

    Raises:
        InputError: a number out of range; the networks differ in vocabulary or positions.

    Paper: R. Agarwal, N. Vieillard, Y. Zhou, P. Stanczyk, S. Ramos, M. Geist, O. Bachem, "On-Policy Distillation of
    Language Models: Learning from Self-Generated Mistakes", ICLR 2024, arXiv 2306.13649. Released code: TRL's
    ``generalized_jsd_loss`` with reduction over the labels that count.

    >>> from kdlab.outputs import Outputs
    >>> student, teacher = Outputs(torch.tensor([[[2.0, 0.0]]])), Outputs(torch.tensor([[[0.0, 2.0]]]))
    >>> loss = GeneralizedJSD(beta=0.5)
    >>> loss(student, teacher, torch.tensor([[0]]))
    tensor(0.3278)
    >>> loss
    GeneralizedJSD(beta=0.5: share of the teacher; 0 is the forward KL, 1 the reverse KL)
    """

    needs: ClassVar[tuple[str, ...]] = ("logits",)
    recipe_weight: ClassVar[float] = 1.0

    def __init__(
        self,
        beta: float = 0.5,
        temperature: float = 1.0,
        positions: Positions = "labeled",
        chunk_size: int | None = None,
    ) -> None:
        super().__init__(positions, chunk_size)
        self.beta = at_least("beta", beta, 0, most=1)
        self.temperature = at_least("temperature", temperature, 0, strictly=True)

    def extra_repr(self) -> str:
        """Return beta with its limits."""
        return f"beta={self.beta:g}: share of the teacher; 0 is the forward KL, 1 the reverse KL"

    def setup(self, context: Context) -> None:
        """Take the ignored label from the task; log what beta means."""
        super().setup(context)
        _log.info(f"GeneralizedJSD: {self.extra_repr()}.")

    def per_row(self, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        """Return the divergence of every row, (n,)."""
        log_p, log_q = (log_probabilities(x, self.temperature) for x in (teacher, student))
        if self.beta in (0, 1):
            return kl_rows(log_q, log_p) if self.beta else kl_rows(log_p, log_q)
        mixture = torch.logaddexp(log_p + math.log(self.beta), log_q + math.log1p(-self.beta))
        return self.beta * kl_rows(log_p, mixture) + (1 - self.beta) * kl_rows(log_q, mixture)

    def row_gradient(self, student: Tensor, teacher: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sum over rows and its gradient (1 - beta) q (log q - log m - KL(q || m)) / T."""
        beta, temperature = self.beta, self.temperature
        log_q, log_p = (normalize_(x, temperature) for x in (student, teacher))
        p = log_p.exp()
        if beta == 0:
            value = dots(p, log_p.sub_(log_q)).sum()
            return value, log_q.exp_().sub_(p).div_(temperature)
        if beta == 1:
            q, mixture, rest = log_q.exp(), log_p, 1.0
            value = log_q.new_zeros(())
        else:
            mixture = log_q.exp().mul_(1 - beta).add_(p, alpha=beta).log_().clamp_(min=torch.finfo(p.dtype).min / 4)
            value = beta * dots(p, log_p.sub_(mixture)).sum()
            q, rest = torch.exp(log_q, out=p), 1 - beta
        kl = dots(q, log_q.sub_(mixture))
        return value + rest * kl.sum(), log_q.sub_(kl).mul_(q).mul_(rest / temperature)
