"""Networks with a changed classifier, and helpers for such changes."""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

from torch import nn

from kdlab.errors import InputError, nearest
from kdlab.models.weights import load_weights
from kdlab.outputs import classifier_of, layer_names


def embedded(
    network: nn.Module,
    width: int,
    dropout: float = 0.5,
    num_classes: int | None = None,
    weights: str | None = None,
) -> nn.Module:
    """Give a network an embedding of another width: the student of KD++ with a wider teacher.

    Its classifier is replaced by batch normalization, dropout, a linear layer to ``width`` (the new embedding) and a
    linear classifier, in this order and in the old classifier's place (``fc.norm``, ``fc.embedding``,
    ``fc.classifier`` if it was ``fc``). The network is changed in place and returned.

    Paper: Y. Wang, L. Cheng, M. Duan, Y. Wang, Z. Feng, S. Kong, "Improving Knowledge Distillation via Regularizing
    Feature Norm and Direction", 2023, arXiv 2305.17007. In the released code only the loss reads the wide embedding
    and the classifier still reads the narrow one; here the wide one is the network's embedding and is deployed.

    Args:
        network: any network whose embedding is read by a linear classifier.
        width: width of the new embedding; the teacher's.
        dropout: probability that an entry of the old embedding is dropped in training.
        num_classes: number of logits; ``None`` for the old classifier's.
        weights: a weights file of the changed network, see :func:`kdlab.models.load_weights`.

    Raises:
        InputError: there is no linear classifier, a number is out of range, or the weights do not fit.
    """
    old = head_of(network)
    if not 0 <= dropout < 1:
        raise InputError(f"dropout must be at least 0 and below 1, not {dropout!r}.")
    classes = old.classifier.out_features if num_classes is None else positive("num_classes", num_classes)
    width = positive("width", width)
    parts: list[tuple[str, nn.Module]] = [
        ("norm", nn.BatchNorm1d(old.classifier.in_features)),
        ("dropout", nn.Dropout(dropout)),
        ("embedding", nn.Linear(old.classifier.in_features, width)),
        ("classifier", nn.Linear(width, classes)),
    ]
    replace(network, old.name, nn.Sequential(OrderedDict(parts)))
    return network if weights is None else load_weights(network, weights)


def without_bias(network: nn.Module, weights: str | None = None) -> nn.Module:
    """Remove the bias of a network's classifier, as CAT-KD does for teacher and student.

    A trained bias is lost. The network is changed in place and returned.

    Paper: Z. Guo, H. Yan, H. Li, X. Lin, "Class Attention Transfer Based Knowledge Distillation", CVPR 2023, arXiv
    2304.12777.

    Args:
        network: any network whose embedding is read by a linear classifier.
        weights: a weights file of the changed network, see :func:`kdlab.models.load_weights`; load a file with a bias
            into ``network`` before.

    Raises:
        InputError: there is no linear classifier, or the weights do not fit.
    """
    head_of(network).classifier.register_parameter("bias", None)
    return network if weights is None else load_weights(network, weights)


class NamedClassifier(NamedTuple):
    """A network's linear classifier and its name."""

    name: str
    classifier: nn.Linear


def head_of(network: nn.Module) -> NamedClassifier:
    """Return the linear layer that reads the network's embedding.

    Raises:
        InputError: there is none that can be replaced.
    """
    classifier = classifier_of(network)
    names = {id(module): name for name, module in network.named_modules()}
    if not isinstance(classifier, nn.Linear) or not names.get(id(classifier)):
        raise InputError(f"{type(network).__name__} has no linear layer inside it that reads its embedding.")
    return NamedClassifier(names[id(classifier)], classifier)


def replace(network: nn.Module, name: str, module: nn.Module) -> None:
    """Replace the layer ``name`` by ``module``."""
    place, _, last = name.rpartition(".")
    setattr(network.get_submodule(place), last, module)


def layer_of(network: nn.Module, name: str) -> nn.Module:
    """Return a layer by its name.

    Raises:
        InputError: there is no such layer.
    """
    layers = layer_names(network)
    if name not in layers:
        raise InputError(
            f"{type(network).__name__} has no layer {name!r}; the nearest names are {nearest(name, layers)}."
        )
    return layers[name]


def positive(name: str, value: int) -> int:
    """Return ``value`` if it is a whole number above 0.

    Raises:
        InputError: it is not.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(f"{name} must be a whole number of at least 1, not {value!r}.")
    return value
