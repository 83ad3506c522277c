"""Multilayer perceptrons, as in the first distillation experiments on MNIST."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from kdlab.errors import InputError
from kdlab.models.weights import load_weights


class MLP(nn.Module):
    """A ReLU network of fully connected layers on flattened inputs.

    Layers to tap: ``hidden.0``, ``hidden.1``, ... are the hidden layers after their ReLU and before dropout,
    (B, width); ``hidden.0.linear`` is the same layer before its ReLU; ``fc`` gives the logits.

    Args:
        in_features: values in one input, over all axes but the batch's (784 for MNIST).
        hidden: width of every hidden layer, first to last; empty for a linear classifier.
        num_classes: K, the number of logits.
        dropout: probability of dropping a hidden unit in training.
        input_dropout: probability of dropping an input in training.

    Shapes:
        input (B, ...) with ``in_features`` values per sample; output (B, K).

    Raises:
        InputError: an input has another number of features.
    """

    def __init__(
        self,
        in_features: int = 784,
        hidden: Sequence[int] = (1200, 1200),
        num_classes: int = 10,
        dropout: float = 0.0,
        input_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        widths = [in_features, *hidden]
        self.in_features = in_features
        self.input_dropout = nn.Dropout(input_dropout)
        self.hidden = nn.ModuleList(
            nn.Sequential(OrderedDict(linear=nn.Linear(before, after), relu=nn.ReLU()))
            for before, after in pairwise(widths)
        )
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(widths[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (B, K) of inputs (B, ...)."""
        x = x.flatten(1)
        if x.shape[1] != self.in_features:
            raise InputError(
                f"This MLP takes {self.in_features} features per sample, not {x.shape[1]}: set in_features."
            )
        x = self.input_dropout(x)
        for layer in self.hidden:
            x = self.dropout(layer(x))
        logits: Tensor = self.fc(x)
        return logits


def mlp(
    in_features: int = 784,
    hidden: Sequence[int] = (1200, 1200),
    num_classes: int = 10,
    dropout: float = 0.0,
    input_dropout: float = 0.0,
    weights: str | None = None,
) -> MLP:
    """Build an :class:`MLP`.

    The defaults are the teacher of Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network",
    NIPS workshop 2014, arXiv 1503.02531 (784-1200-1200-10; its student is ``hidden=[800, 800]``).

    Args:
        in_features: values in one input.
        hidden: width of every hidden layer.
        num_classes: number of logits.
        dropout: probability of dropping a hidden unit.
        input_dropout: probability of dropping an input.
        weights: a weights file, see :func:`kdlab.models.load_weights`.

    Raises:
        InputError: the weights do not fit.

    >>> [name for name, _ in mlp(hidden=[32]).named_parameters()]
    ['hidden.0.linear.weight', 'hidden.0.linear.bias', 'fc.weight', 'fc.bias']
    """
    network = MLP(in_features, hidden, num_classes, dropout, input_dropout)
    return network if weights is None else load_weights(network, weights)
