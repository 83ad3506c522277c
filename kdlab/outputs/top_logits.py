"""Logits of which only the highest are known, with the mass that is missing."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kdlab.outputs.factored import FactoredLogits


class TopLogits(FactoredLogits):
    r"""Log-probabilities (..., V) of which the k highest of each row are kept; the others share the missing mass.

    .. math:: z_v = \log p_v \text{ for the k tokens } S, \qquad
              z_v = \log \frac{1 - \sum_{u \in S} p_u}{V - k} \text{ for all others}

    Rows are selected, cast and detached as they are kept, 2k numbers each; other operations, and losses a chunk at a
    time, compute (..., V). :class:`~kdlab.losses.TopK` with at most k tokens is exact on them.
    """

    def product(self) -> Tensor:
        """Return the log-probabilities of all tokens."""
        log_p, tokens = self.hidden.chunk(2, -1)
        return dense(log_p, tokens, self.weight.shape[0])


def top_logits(log_p: Tensor, tokens: Tensor, vocabulary: int) -> TopLogits:
    """Return logits (..., V) from float32 log-probabilities (..., k) of some tokens (..., k) below 2^24."""
    # One tensor, whose rows are selected as those of hidden states are; float32 is exact for such whole numbers.
    packed = torch.cat([log_p.float(), tokens.float()], -1)
    return TopLogits(packed, packed.new_empty(vocabulary, 0))


def dense(log_p: Tensor, tokens: Tensor, vocabulary: int) -> Tensor:
    """Return log-probabilities (..., V), see :class:`TopLogits`.

    >>> dense(torch.tensor([0.5]).log(), torch.tensor([1]), 3).exp()
    tensor([0.2500, 0.5000, 0.2500])
    """
    k = log_p.shape[-1]
    missing = (1 - log_p.exp().sum(-1, keepdim=True)).clamp(min=torch.finfo(log_p.dtype).tiny)
    others = missing.log() - math.log(max(vocabulary - k, 1))
    return others.repeat(*[1] * (log_p.dim() - 1), vocabulary).scatter(-1, tokens.long(), log_p)
