"""Losses on logits."""

from kdlab.losses.response.consistency import Consistency
from kdlab.losses.response.curriculum_temperature import CurriculumTemperature
from kdlab.losses.response.dist import DIST
from kdlab.losses.response.distill_kl import DistillKL
from kdlab.losses.response.dkd import DKD
from kdlab.losses.response.hard_labels import HardLabels
from kdlab.losses.response.label_smoothing import LabelSmoothing
from kdlab.losses.response.labels import Labels
from kdlab.losses.response.logit_standardization import LogitStandardization
from kdlab.losses.response.margin_mse import MarginMSE
from kdlab.losses.response.mlkd import MLKD
from kdlab.losses.response.nkd import NKD
from kdlab.losses.response.ofa import OFA
from kdlab.losses.response.on_view import OnView
from kdlab.losses.response.rld import RLD
from kdlab.losses.response.scale_decoupled import ScaleDecoupled
from kdlab.losses.response.soft_labels import SoftLabels
from kdlab.losses.response.soft_targets import SoftTargets
from kdlab.losses.response.ttm import TTM
from kdlab.losses.response.uskd import USKD
from kdlab.losses.response.virtual_teacher import VirtualTeacher
from kdlab.losses.response.wsld import WSLD
from kdlab.losses.response.wttm import WTTM
from kdlab.losses.response.zipf import ZipfLabelSmoothing

__all__ = [
    "Consistency",
    "CurriculumTemperature",
    "DIST",
    "DKD",
    "DistillKL",
    "HardLabels",
    "LabelSmoothing",
    "Labels",
    "LogitStandardization",
    "MLKD",
    "MarginMSE",
    "NKD",
    "OFA",
    "OnView",
    "RLD",
    "ScaleDecoupled",
    "SoftLabels",
    "SoftTargets",
    "TTM",
    "USKD",
    "VirtualTeacher",
    "WSLD",
    "WTTM",
    "ZipfLabelSmoothing",
]
