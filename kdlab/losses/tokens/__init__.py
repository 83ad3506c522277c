"""Losses on token logits over large vocabularies."""

from kdlab.losses.tokens.cross_entropy import TokenCrossEntropy, next_token_labels
from kdlab.losses.tokens.forward_kl import ForwardKL
from kdlab.losses.tokens.generalized_jsd import GeneralizedJSD
from kdlab.losses.tokens.reverse_kl import ReverseKL
from kdlab.losses.tokens.sequence_kd import SequenceKD
from kdlab.losses.tokens.skew_kl import SkewKL
from kdlab.losses.tokens.token_loss import TokenLoss
from kdlab.losses.tokens.top_k import TopK, top_k_of, top_k_rows
from kdlab.losses.tokens.uld import ULD

__all__ = [
    "ForwardKL",
    "GeneralizedJSD",
    "ReverseKL",
    "SequenceKD",
    "SkewKL",
    "TokenCrossEntropy",
    "TokenLoss",
    "TopK",
    "ULD",
    "next_token_labels",
    "top_k_of",
    "top_k_rows",
]
