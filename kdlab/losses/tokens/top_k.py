"""Top-k tokens: the teacher's most probable tokens and the mass that is missing (Anshumann et al. 2025)."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from kdlab.errors import InputError
from kdlab.losses.checks import one_of
from kdlab.losses.tokens.token_loss import Positions, TokenLoss, log_probabilities

Missing = Literal["rest", "renormalize"]


class TopK(TokenLoss):
    r"""Kullback-Leibler divergence on the k tokens that the teacher finds most probable, averaged over tokens.

    With :math:`S` these tokens and :math:`p_S` their mass, ``missing`` says what happens to :math:`1 - p_S`:

    .. math:: L_{rest} = \sum_{v \in S} p_v \log \frac{p_v}{q_v} + (1 - p_S) \log \frac{1 - p_S}{1 - q_S}, \qquad
              L_{renormalize} = \sum_{v \in S} \frac{p_v}{p_S} \log \frac{p_v / p_S}{q_v}

    - ``"rest"``: all other tokens are one bucket on both sides: a lower bound of the forward KL that is 0 where the
      student has the teacher's probabilities;
    - ``"renormalize"``: the k tokens get all the mass, so that the student is drawn to put all of its own on them: each
      of its probabilities grows by 1 / p_S (0.92 kept makes 0.81 to 0.88), which is overconfident.

    With k not below the vocabulary both are the forward KL. Computed in float32, or in float64 for float64 logits.

    Recipe: weight 1, T = 1, for language models; none for images.

    Args:
        k: number of tokens, at least 1.
        missing: ``"rest"`` or ``"renormalize"``.
        positions: ``"labeled"``, or ``"attended"`` for all tokens that are no padding.
        chunk_size: positions that are projected and compared at a time; ``None`` for all.

    Shapes:
        logits: (B, L, V) or (N, V), the same for both networks; :func:`top_k_rows` takes stored log-probabilities.
        target: labels (B, L) or (N,); positions with the ignored label do not count.

    Raises:
        InputError: a number out of range; the networks differ in vocabulary or positions.

    Paper: Anshumann, M. A. Zaidi, A. Kedia, J. Ahn, T. Kwon, K. Lee, H. Lee, J. Lee, "Sparse Logit Sampling:
    Accelerating Knowledge Distillation in LLMs", ACL 2025, arXiv 2503.16870, which shows the bias of renormalized top-k
    targets. axolotl renormalizes; TRL's server trainers have a tail bucket; DistillKit renormalizes or spreads it.

    >>> from kdlab.outputs import Outputs
    >>> student, teacher = Outputs(torch.tensor([[0.0, 0.0, 0.0]])), Outputs(torch.tensor([[2.0, 0.0, 0.0]]))
    >>> TopK(1)(student, teacher, torch.tensor([0])), TopK(1, "renormalize")(student, teacher, torch.tensor([0]))
    (tensor(0.4330), tensor(1.0986))
    """

    needs: ClassVar[tuple[str, ...]] = ("logits",)
    recipe_weight: ClassVar[float] = 0.5

    def __init__(
        self,
        k: int = 64,
        missing: Missing = "rest",
        positions: Positions = "labeled",
        chunk_size: int | None = None,
    ) -> None:
        super().__init__(positions, chunk_size)
        if not isinstance(k, int) or isinstance(k, bool) or k < 1:
            raise InputError(f"k must be a whole number of tokens of at least 1, not {k!r}.")
        self.k = k
        self.missing: Missing = one_of("missing", missing, ("rest", "renormalize"))

    def per_row(self, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        """Return the divergence of every row, (n,)."""
        top, index = log_probabilities(teacher).topk(min(self.k, teacher.shape[-1]), -1)
        return top_k_rows(student, top, index, self.missing)


def top_k_rows(student: Tensor, log_p: Tensor, index: Tensor, missing: Missing = "rest") -> Tensor:
    """Return the divergence of every row, (n,), from the teacher's log-probabilities of some tokens.

    Args:
        student: logits (n, V).
        log_p: (n, k) log-probabilities of the teacher, of a distribution over all tokens: their sum is below 1.
        index: (n, k) int64, which tokens they are, no token twice in a row.
        missing: see :class:`TopK`.
    """
    log_q = log_probabilities(student)
    chosen = log_q.gather(-1, index)
    if missing == "renormalize":
        log_p = log_p.log_softmax(-1)
        return (log_p.exp() * (log_p - chosen)).sum(-1)
    value = (log_p.exp() * (log_p - chosen)).sum(-1)
    if index.shape[-1] == student.shape[-1]:
        return value
    tiny = torch.finfo(log_p.dtype).tiny
    rest = (1 - log_p.exp().sum(-1)).clamp(min=tiny)
    # Not 1 minus the sum of the chosen, which cancels where the student is sure.
    log_rest = log_q.scatter(-1, index, -torch.inf).logsumexp(-1)
    return value + rest * (rest.log() - log_rest)


def top_k_of(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k largest log-probabilities of logits (..., V) and their tokens: (..., k) float32 and int64."""
    values, index = F.log_softmax(logits.float(), -1).topk(min(k, logits.shape[-1]), -1)
    return values, index
