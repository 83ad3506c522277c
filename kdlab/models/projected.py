"""SimKD's student: a network up to its last map, a projector to the teacher's map and the teacher's classifier."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from kdlab.errors import InputError
from kdlab.models.blocks import conv_bn_relu
from kdlab.models.surgery import head_of, layer_of, positive, replace
from kdlab.models.weights import load_weights


class Projected(nn.Module):
    """A network whose map is projected to another width before it is pooled and classified.

    ``trunk`` is the network without its classifier; ``projector`` maps the output of ``layer`` to the map to tap (1 x
    1, 3 x 3 and 1 x 1 convolution without bias, each with batch normalization and ReLU); ``classifier`` reads the
    pooled projection. All three are in the state dict under these names.

    Args:
        network: the network; its classifier is replaced by an identity.
        layer: the layer whose map (B, C, H, W) is pooled and classified; C is the classifier's input width.
        width: channels of the projection, those of the teacher's map.
        factor: the projector works on ``width // factor`` channels.
        num_classes: number of logits; ``None`` for the replaced classifier's.
        size: height and width of the teacher's map; a larger map of the network is pooled (adaptive average) to it
            before the projector, as the authors do, in the deployed student as well.

    Shapes:
        input: as the network's.
        output: logits (B, num_classes).

    Raises:
        InputError: there is no linear classifier or no such layer, or a number is out of range; at the first forward,
            the layer does not return such a map.
    """

    def __init__(
        self,
        network: nn.Module,
        layer: str,
        width: int,
        factor: int = 2,
        num_classes: int | None = None,
        size: int | tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        name, old = head_of(network)
        self.layer, self.channels = layer, old.in_features
        sides = (size, size) if isinstance(size, int) else size or ()
        self.size = tuple(positive("size", side) for side in sides)
        width, middle = positive("width", width), width // positive("factor", factor)
        if middle < 1:
            raise InputError(f"factor must not be above the width of {width}, but is {factor}.")
        replace(network, name, nn.Identity())
        self.trunk = network
        self.projector = nn.Sequential(
            *conv_bn_relu(self.channels, middle, 1), *conv_bn_relu(middle, middle, 3), *conv_bn_relu(middle, width, 1)
        )
        classes = old.out_features if num_classes is None else positive("num_classes", num_classes)
        self.classifier = nn.Linear(width, classes)
        self._kept: list[Any] = []  # output of the layer; the name enters the teacher cache's key
        layer_of(network, layer).register_forward_hook(self._record)  # deepcopy rebinds a method to the copy

    def _record(self, module: nn.Module, args: Any, output: Any) -> None:
        self._kept[:] = [output]

    def forward(self, inputs: Any) -> Tensor:
        """Return the logits (B, num_classes)."""
        try:
            self.trunk(inputs)
            if not self._kept:
                raise InputError(f"Layer {self.layer!r} did not run in this forward, so nothing can be projected.")
            (value,) = self._kept
        finally:
            self._kept.clear()
        features = map_of(value, self.layer, self.channels)
        if self.size:
            height, width = map(min, features.shape[2:], self.size)
            features = F.adaptive_avg_pool2d(features, (height, width))
        projection = self.projector(features)
        logits: Tensor = self.classifier(F.adaptive_avg_pool2d(projection, 1).flatten(1))
        return logits


def projected(
    network: nn.Module,
    layer: str,
    width: int,
    factor: int = 2,
    num_classes: int | None = None,
    weights: str | None = None,
    size: int | tuple[int, int] | None = None,
) -> Projected:
    """Build :class:`Projected`, the student of SimKD.

    D. Chen, J.-P. Mei, H. Zhang, C. Wang, Y. Feng, C. Chen, "Knowledge Distillation with the Reused Teacher
    Classifier", CVPR 2022, arXiv 2203.14001. :class:`kdlab.losses.SimKD` trains ``trunk`` and ``projector`` and
    replaces ``classifier`` by the teacher's classifier. The projector stays in the deployed student: its
    parameters are part of the result, and ``factor`` trades them against accuracy.

    Args:
        network: the network; its classifier is replaced by an identity.
        layer: the layer whose map is pooled and classified: ``layer3`` for kdlab's ResNets, ``relu`` for its wide ones.
        width: channels of the projection, those of the teacher's map.
        factor: the projector works on ``width // factor`` channels.
        num_classes: number of logits; ``None`` for the replaced classifier's.
        weights: a weights file of the full student, see :func:`kdlab.models.load_weights`.
        size: height and width of the teacher's map, where that of the network is larger: it is pooled to this before
            the projector.

    Raises:
        InputError: as for :class:`Projected`, or the weights do not fit.

    >>> import torch
    >>> from kdlab.models import resnet8
    >>> student = projected(resnet8(num_classes=10), layer="layer3", width=256)
    >>> student(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """
    student = Projected(network, layer, width, factor, num_classes, size)
    return student if weights is None else load_weights(student, weights)


def map_of(value: Any, layer: str, channels: int) -> Tensor:
    """Return ``value`` if it is a map (B, channels, H, W).

    Raises:
        InputError: it is not.
    """
    if not isinstance(value, Tensor) or value.dim() != 4 or value.shape[1] != channels:
        form = tuple(value.shape) if isinstance(value, Tensor) else f"a {type(value).__name__}"
        raise InputError(
            f"Layer {layer!r} gives {form}, but the last map (B, {channels}, H, W) is needed, which is pooled and "
            "classified: set layer to the layer that returns it."
        )
    return value
