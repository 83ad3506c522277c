"""Who teaches whom: from the networks' outputs on a batch to lessons."""

from kdlab.teaching.ensembles import AEKD, CAMKD, EBKD, Ensemble, MeanOfLogits, MeanOfLosses
from kdlab.teaching.frozen import FrozenTeacher
from kdlab.teaching.teaching import Lesson, Teaching

__all__ = [
    "AEKD",
    "CAMKD",
    "EBKD",
    "Ensemble",
    "FrozenTeacher",
    "Lesson",
    "MeanOfLogits",
    "MeanOfLosses",
    "Teaching",
]
