"""Evaluation of backbones without a classifier: neighbors, linear probes, few labels, likeness to a teacher."""

from kdlab.probes.callback import ProbeFeatures
from kdlab.probes.corruptions import CORRUPTIONS, corrupted
from kdlab.probes.extraction import Features, features_of
from kdlab.probes.few_labels import fine_tuned_accuracy
from kdlab.probes.likeness import linear_cka, mapped_cosine, neighbor_agreement
from kdlab.probes.scores import knn_accuracy, linear_probe_accuracy

__all__ = ["CORRUPTIONS", "Features", "ProbeFeatures", "corrupted", "features_of", "fine_tuned_accuracy"]
__all__ += ["knn_accuracy", "linear_cka", "linear_probe_accuracy", "mapped_cosine", "neighbor_agreement"]
