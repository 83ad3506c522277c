"""Losses on what networks compute on the way: their layers."""

from kdlab.losses.feature.attention_transfer import AttentionTransfer
from kdlab.losses.feature.hint import Hint

__all__ = ["AttentionTransfer", "Hint"]
