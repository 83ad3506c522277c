"""A batch, what a network gives on it, and how that is observed."""

from kdlab.outputs.containers import Batch, Mix, Outputs, inputs_of
from kdlab.outputs.network_layers import Head, classifier_of, heads_of, layer_names, split_call
from kdlab.outputs.observer import Observer, logits_of, observe, run

__all__ = ["Batch", "Head", "Mix", "Observer", "Outputs"]
__all__ += ["classifier_of", "heads_of", "inputs_of", "layer_names", "split_call"]
__all__ += ["logits_of", "observe", "run"]
