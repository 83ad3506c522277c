"""What is compared: one plain ``nn.Module`` a method, ``forward(student, teacher, target) -> scalar``.

Every loss says in ``needs`` what it reads, out of ``"logits"``, ``"layers"`` (tapped layers, in pairs), ``"embedding"``
(the embedding or one tapped layer), ``"classes"`` (integer class labels) and ``"index"`` (the sample index).
"""

from kdlab.losses.feature import AttentionTransfer, Hint
from kdlab.losses.relation import RKDAngle, RKDDistance, SimilarityPreserving
from kdlab.losses.response import DKD, SoftTargets

__all__ = [
    "AttentionTransfer",
    "DKD",
    "Hint",
    "RKDAngle",
    "RKDDistance",
    "SimilarityPreserving",
    "SoftTargets",
]
