"""Losses on relations between samples."""

from kdlab.losses.relation.affinity_mimicking import AffinityMimicking
from kdlab.losses.relation.bake import BAKE
from kdlab.losses.relation.correlation_congruence import CorrelationCongruence
from kdlab.losses.relation.crd import CRD
from kdlab.losses.relation.irg import IRG
from kdlab.losses.relation.itrd import ITRD
from kdlab.losses.relation.mcl import MCL
from kdlab.losses.relation.mean_difference import MeanDifference
from kdlab.losses.relation.minilm import MiniLM
from kdlab.losses.relation.minilm_v2 import MiniLMv2
from kdlab.losses.relation.pkt import PKT
from kdlab.losses.relation.queue_similarity import QueueSimilarity
from kdlab.losses.relation.rkd import RKDAngle, RKDDistance
from kdlab.losses.relation.self_supervision import SelfSupervision
from kdlab.losses.relation.similarity_preserving import SimilarityPreserving
from kdlab.losses.relation.sskd import SSKD
from kdlab.losses.relation.token_similarity import TokenSimilarity

__all__ = [
    "AffinityMimicking",
    "BAKE",
    "CRD",
    "CorrelationCongruence",
    "IRG",
    "ITRD",
    "MCL",
    "MeanDifference",
    "MiniLM",
    "MiniLMv2",
    "PKT",
    "QueueSimilarity",
    "RKDAngle",
    "RKDDistance",
    "SSKD",
    "SelfSupervision",
    "SimilarityPreserving",
    "TokenSimilarity",
]
