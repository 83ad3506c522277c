"""Losses on what networks answer: their logits."""

from kdlab.losses.response.dkd import DKD
from kdlab.losses.response.soft_targets import SoftTargets

__all__ = ["DKD", "SoftTargets"]
