"""Who teaches whom: ways to draw the plan of a run."""

from kdlab.members.ensembles import AEKD, CAMKD, EBKD, Ensemble, MeanOfLogits, MeanOfLosses
from kdlab.members.fast_options import Fast
from kdlab.members.teacher_cache import TeacherCache
from kdlab.teaching.consensus import Average, Consensus, General, Linear, MinLogit, Naive, Rule
from kdlab.teaching.ema import MovingAverage, Stale
from kdlab.teaching.frozen_teacher import FrozenTeacher
from kdlab.teaching.gating import Gated, Leader
from kdlab.teaching.graph import Graph
from kdlab.teaching.on_policy import OnPolicy
from kdlab.teaching.pcl import PeerEnsemble
from kdlab.teaching.peers import Alone, DeepestExit, Peers
from kdlab.teaching.plan import Edge, Plan, Teaching
from kdlab.teaching.sample_bank import LastMiniBatch, PreviousEpoch
from kdlab.teaching.self_consistency import Classmate, Classmates, TwoViews

__all__ = ["AEKD", "Alone", "Average", "CAMKD", "Classmate", "Classmates", "Consensus", "DeepestExit", "EBKD", "Edge"]
__all__ += ["Ensemble", "Fast", "FrozenTeacher", "Gated", "General", "Graph", "LastMiniBatch", "Leader", "Linear"]
__all__ += [
    "MeanOfLogits",
    "MeanOfLosses",
    "MinLogit",
    "MovingAverage",
    "Naive",
    "OnPolicy",
    "PeerEnsemble",
    "Peers",
    "Plan",
]
__all__ += ["PreviousEpoch", "Rule", "Stale", "Teaching", "TeacherCache", "TwoViews"]
