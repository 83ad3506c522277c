"""SimKD's student: a network up to its last map, a projector to the teacher's map, and the teacher's classifier."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from kdlab.errors import InputError
from kdlab.models.surgery import head_of, layer_of, positive, replace
from kdlab.models.weights import load_weights


class Projected(nn.Module):
    """A network whose map is projected to another width before it is pooled and classified.

    ``trunk`` is the network without its own classifier; ``projector`` turns its layer ``layer`` into the map to tap
    (1 x 1, 3 x 3 and 1 x 1 convolution without bias, each with batch normalisation and ReLU); ``classifier`` reads the
    pooled projection. All three are in the state dict under these names.

    Args:
        network: the network; its classifier is replaced by an identity.
        layer: the layer whose map (B, C, H, W) enters the classifier after pooling, C being the classifier's width.
        width: channels of the projection, those of the teacher's map.
        factor: the projector works on ``width // factor`` channels.
        num_classes: number of logits; ``None`` is the replaced classifier's.

    Shapes:
        input: as the network's.
        output: logits (B, num_classes).

    Raises:
        InputError: no linear classifier, no such layer, a number out of range; a layer that gives no such map.
    """

    def __init__(
        self, network: nn.Module, layer: str, width: int, factor: int = 2, num_classes: int | None = None
    ) -> None:
        super().__init__()
        name, old = head_of(network)
        self.layer, self.channels = layer, old.in_features
        width, middle = positive("width", width), width // positive("factor", factor)
        if middle < 1:
            raise InputError(f"factor must not be above the width of {width}, but is {factor}.")
        replace(network, name, nn.Identity())
        self.trunk = network
        self.projector = nn.Sequential(
            *_stage(self.channels, middle, 1), *_stage(middle, middle, 3), *_stage(middle, width, 1)
        )
        classes = old.out_features if num_classes is None else positive("num_classes", num_classes)
        self.classifier = nn.Linear(width, classes)
        self._kept: list[Any] = []
        layer_of(network, layer).register_forward_hook(self._keep)  # a method: copies keep into the copy

    def _keep(self, module: nn.Module, args: Any, output: Any) -> None:
        self._kept[:] = [output]

    def forward(self, inputs: Any) -> Tensor:
        """Logits (B, num_classes)."""
        try:
            self.trunk(inputs)
            if not self._kept:
                raise InputError(f"Layer {self.layer!r} did not run in the network, so nothing can be projected.")
            (value,) = self._kept
        finally:
            self._kept.clear()
        projection = self.projector(map_of(value, self.layer, self.channels))
        logits: Tensor = self.classifier(F.adaptive_avg_pool2d(projection, 1).flatten(1))
        return logits


def projected(
    network: nn.Module,
    layer: str,
    width: int,
    factor: int = 2,
    num_classes: int | None = None,
    weights: str | None = None,
) -> Projected:
    """:class:`Projected` by class path: the student of SimKD.

    D. Chen, J.-P. Mei, H. Zhang, C. Wang, Y. Feng, C. Chen, "Knowledge Distillation with the Reused Teacher
    Classifier", CVPR 2022, arXiv 2203.14001. :class:`kdlab.losses.SimKD` trains ``trunk`` and ``projector``, and puts
    the teacher's classifier in the place of ``classifier``. The projector stays in the deployed student: its
    parameters are part of the result, and ``factor`` trades them against accuracy.

    Args:
        network, layer, width, factor, num_classes: as for :class:`Projected`; ``layer3`` for kdlab's ResNets, and
            ``relu`` for its wide ones.
        weights: a file for :func:`kdlab.models.load_weights`, of the whole student.

    Raises:
        InputError: as for :class:`Projected`; or the weights do not fit.

    >>> import torch
    >>> from kdlab.models import resnet8
    >>> student = projected(resnet8(num_classes=10), layer="layer3", width=256)
    >>> student(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """
    student = Projected(network, layer, width, factor, num_classes)
    return student if weights is None else load_weights(student, weights)


def map_of(value: Any, layer: str, channels: int) -> Tensor:
    """``value`` itself if it is a map (B, channels, H, W).

    Raises:
        InputError: it is something else.
    """
    if not isinstance(value, Tensor) or value.dim() != 4 or value.shape[1] != channels:
        given = tuple(value.shape) if isinstance(value, Tensor) else f"a {type(value).__name__}"
        raise InputError(
            f"Layer {layer!r} gives {given}, but the last map (B, {channels}, H, W) is needed, which the classifier "
            "reads after pooling: name that layer."
        )
    return value


def _stage(before: int, after: int, kernel: int) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(before, after, kernel, padding=kernel // 2, bias=False)
    return convolution, nn.BatchNorm2d(after), nn.ReLU()
