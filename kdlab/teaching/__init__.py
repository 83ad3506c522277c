"""Who teaches whom: from the networks' outputs on a batch to lessons."""

from kdlab.members.ensembles import AEKD, CAMKD, EBKD, Ensemble, MeanOfLogits, MeanOfLosses
from kdlab.members.fast_inference import Fast
from kdlab.members.teacher_cache import TeacherCache
from kdlab.teaching.consensus import Average, Consensus, General, Linear, MinLogit, Naive, Rule
from kdlab.teaching.consistency import Classmate, Classmates, TwoViews
from kdlab.teaching.ema import MovingAverage, Stale
from kdlab.teaching.frozen import FrozenTeacher
from kdlab.teaching.gating import Gated, Leader
from kdlab.teaching.pcl import PeerEnsemble
from kdlab.teaching.peers import Alone, DeepestExit, Peers
from kdlab.teaching.sample_bank import LastMiniBatch, PreviousEpoch
from kdlab.teaching.teaching import Answer, Lesson, Teaching

__all__ = [
    "AEKD",
    "Alone",
    "Answer",
    "Average",
    "CAMKD",
    "Classmate",
    "Classmates",
    "Consensus",
    "DeepestExit",
    "EBKD",
    "Ensemble",
    "Fast",
    "FrozenTeacher",
    "Gated",
    "General",
    "LastMiniBatch",
    "Leader",
    "Lesson",
    "Linear",
    "MeanOfLogits",
    "MeanOfLosses",
    "MinLogit",
    "MovingAverage",
    "Naive",
    "PeerEnsemble",
    "Peers",
    "PreviousEpoch",
    "Rule",
    "Stale",
    "Teaching",
    "TeacherCache",
    "TwoViews",
]
