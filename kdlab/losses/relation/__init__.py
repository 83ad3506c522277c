"""Losses on how samples relate to each other."""

from kdlab.losses.relation.rkd import RKDAngle, RKDDistance
from kdlab.losses.relation.similarity_preserving import SimilarityPreserving

__all__ = ["RKDAngle", "RKDDistance", "SimilarityPreserving"]
