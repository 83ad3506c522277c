"""Losses on intermediate layers."""

from kdlab.losses.feature.activation_boundary import ActivationBoundary
from kdlab.losses.feature.attention_transfer import AttentionTransfer
from kdlab.losses.feature.camkd import CAMKDFeatures
from kdlab.losses.feature.cat_kd import CATKD
from kdlab.losses.feature.cosine_smooth_l1 import CosineSmoothL1
from kdlab.losses.feature.cwd import CWD
from kdlab.losses.feature.embed_distill import EmbedDistill
from kdlab.losses.feature.factor_transfer import FactorTransfer
from kdlab.losses.feature.frskd import FRSKD
from kdlab.losses.feature.fsp import FSP
from kdlab.losses.feature.hidden_cosine import HiddenCosine
from kdlab.losses.feature.hint import Hint
from kdlab.losses.feature.ickd import ICKD
from kdlab.losses.feature.kd_svd import KDSVD
from kdlab.losses.feature.mgd import MGD
from kdlab.losses.feature.mix_skd import MixSKD
from kdlab.losses.feature.norm import NORM
from kdlab.losses.feature.norm_and_direction import NormAndDirection
from kdlab.losses.feature.nst import NST
from kdlab.losses.feature.ofd import OFD
from kdlab.losses.feature.paraphraser import Paraphraser
from kdlab.losses.feature.pefd import PEFD
from kdlab.losses.feature.pkd import PKD
from kdlab.losses.feature.review_kd import ReviewKD
from kdlab.losses.feature.sem_ckd import SemCKD
from kdlab.losses.feature.sim_kd import SimKD
from kdlab.losses.feature.srrl import SRRL
from kdlab.losses.feature.standardized import Standardized
from kdlab.losses.feature.tiny_bert_attention import TinyBERTAttention
from kdlab.losses.feature.tiny_bert_hidden import TinyBERTHidden
from kdlab.losses.feature.vid import VID
from kdlab.losses.feature.vkd import VkD

__all__ = [
    "ActivationBoundary",
    "AttentionTransfer",
    "CAMKDFeatures",
    "CATKD",
    "CWD",
    "CosineSmoothL1",
    "EmbedDistill",
    "FRSKD",
    "FSP",
    "FactorTransfer",
    "HiddenCosine",
    "Hint",
    "ICKD",
    "KDSVD",
    "MGD",
    "MixSKD",
    "NORM",
    "NST",
    "NormAndDirection",
    "OFD",
    "PEFD",
    "PKD",
    "Paraphraser",
    "ReviewKD",
    "SRRL",
    "SemCKD",
    "SimKD",
    "Standardized",
    "TinyBERTAttention",
    "TinyBERTHidden",
    "VID",
    "VkD",
]
