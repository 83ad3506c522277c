"""Who teaches whom: from the networks' outputs on a batch to lessons."""

from kdlab.teaching.branches import Gated, Leader
from kdlab.teaching.cache import TeacherCache
from kdlab.teaching.collaboration import PeerEnsemble
from kdlab.teaching.consensus import Average, Consensus, General, Linear, MinLogit, Naive, Rule
from kdlab.teaching.copies import MovingAverage, Stale
from kdlab.teaching.ensembles import AEKD, CAMKD, EBKD, Ensemble, MeanOfLogits, MeanOfLosses
from kdlab.teaching.fast import Fast
from kdlab.teaching.frozen import FrozenTeacher
from kdlab.teaching.memory import LastMiniBatch, PreviousEpoch
from kdlab.teaching.peers import Alone, DeepestExit, Peers
from kdlab.teaching.teaching import Answer, Lesson, Teaching
from kdlab.teaching.views import Classmate, Classmates, TwoViews

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
