"""A batch, what a network gives on it, and how that is observed."""

from kdlab.outputs.batch import Batch, Mix, inputs_of
from kdlab.outputs.model_output import logits_of
from kdlab.outputs.observer import Head, Observer, Outputs, classifier_of, headed, heads_of, layer_names, observe, run

__all__ = [
    "Batch",
    "Head",
    "Mix",
    "Observer",
    "Outputs",
    "classifier_of",
    "headed",
    "heads_of",
    "inputs_of",
    "layer_names",
    "logits_of",
    "observe",
    "run",
]
