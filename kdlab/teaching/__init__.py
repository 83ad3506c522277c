"""Who teaches whom: from the networks' outputs on a batch to lessons."""

from kdlab.teaching.cache import TeacherCache
from kdlab.teaching.ensembles import AEKD, CAMKD, EBKD, Ensemble, MeanOfLogits, MeanOfLosses
from kdlab.teaching.fast import Fast
from kdlab.teaching.frozen import FrozenTeacher
from kdlab.teaching.teaching import Lesson, Teaching

__all__ = [
    "AEKD",
    "CAMKD",
    "EBKD",
    "Ensemble",
    "Fast",
    "FrozenTeacher",
    "Lesson",
    "MeanOfLogits",
    "MeanOfLosses",
    "Teaching",
    "TeacherCache",
]
