"""NORM's student: two linear layers after its last map, with several copies of the teacher's map in between."""

from __future__ import annotations

import copy
import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from kdlab.errors import InputError
from kdlab.models.blocks import initialize_convolutions
from kdlab.models.projected import map_of
from kdlab.models.surgery import head_of, layer_of, positive
from kdlab.models.weights import load_weights


class Normed(nn.Module):
    """A network whose last map x becomes x + back(expand(x)), both 1 x 1 convolutions with batch normalization.

    ``trunk`` is the network with unchanged layer names; ``expand`` outputs the map of ``copies * width`` channels to
    tap; ``back`` returns to the network's channels. There is no nonlinearity, so :meth:`merged` fuses all four parts
    into one convolution for deployment.

    Args:
        network: the network; a hook on ``layer`` changes it.
        layer: the layer whose map (B, C, H, W) is pooled and classified; C is the classifier's input width.
        width: channels of the teacher's map.
        copies: number of copies of the teacher's map in the expanded map.
        logit_scale: if not ``None``, the logits are normalized (mean 0, variance 1 over the classes) and multiplied by
            it, as the released code does with 2.5 in training and testing.

    Shapes:
        input, output: as the network's.

    Raises:
        InputError: there is no linear classifier or no such layer, or a number is out of range; at the first forward,
            the layer does not return such a map.
    """

    def __init__(
        self, network: nn.Module, layer: str, width: int, copies: int = 8, logit_scale: float | None = None
    ) -> None:
        super().__init__()
        self.layer, self.channels = layer, head_of(network).classifier.in_features
        expanded = positive("copies", copies) * positive("width", width)
        if logit_scale is not None and not 0 < logit_scale < math.inf:
            raise InputError(f"logit_scale must be a finite number above 0, or None, not {logit_scale!r}.")
        self.logit_scale = logit_scale
        self.trunk = network
        self.expand: nn.Module = _linear(self.channels, expanded)
        self.back: nn.Module = _linear(expanded, self.channels)
        layer_of(network, layer).register_forward_hook(self._add)  # deepcopy rebinds a method to the copy

    def _add(self, module: nn.Module, args: Any, output: Any) -> Tensor:
        value = map_of(output, self.layer, self.channels)
        out: Tensor = value + self.back(self.expand(value))
        return out

    def forward(self, inputs: Any) -> Any:
        """Return the network's output with the changed map."""
        out = self.trunk(inputs)
        if self.logit_scale is None:
            return out
        return F.layer_norm(out, out.shape[-1:], eps=1e-7) * self.logit_scale

    @torch.no_grad()
    def merged(self) -> Normed:
        """Return an equivalent copy in eval mode with one 1 x 1 convolution beside the shortcut; do not train it.

        Raises:
            InputError: the network is merged already.
        """
        if not isinstance(self.expand, nn.Sequential) or not isinstance(self.back, nn.Sequential):
            raise InputError("This network is merged already.")
        (first, shift), (second, offset) = _as_matrix(self.expand), _as_matrix(self.back)
        fused = copy.deepcopy(self).eval()
        convolution = nn.Conv2d(self.channels, self.channels, 1).to(next(self.expand.parameters()))
        convolution.weight.copy_((second @ first)[:, :, None, None])
        assert convolution.bias is not None
        convolution.bias.copy_(second @ shift + offset)
        fused.expand, fused.back = convolution, nn.Identity()
        return fused.eval()


def normed(
    network: nn.Module,
    layer: str,
    width: int,
    copies: int = 8,
    logit_scale: float | None = None,
    weights: str | None = None,
) -> Normed:
    """Build :class:`Normed`, the student of NORM.

    X. Liu, L. Li, C. Li, A. Yao, "NORM: Knowledge Distillation via N-to-One Representation Matching", ICLR 2023.
    :class:`kdlab.losses.NORM` reads the layer ``expand``. The new convolutions are initialized as in the released code
    (Kaiming, fan out).

    Args:
        network: the network; a hook on ``layer`` changes it.
        layer: the layer whose map is pooled and classified: ``layer3`` for kdlab's ResNets, ``relu`` for its wide ones.
        width: channels of the teacher's map.
        copies: number of copies of the teacher's map in the expanded map.
        logit_scale: factor on the normalized logits; ``None`` to leave the logits unchanged.
        weights: a weights file of the full student before :meth:`Normed.merged`, see
            :func:`kdlab.models.load_weights`.

    Raises:
        InputError: as for :class:`Normed`, or the weights do not fit.

    >>> from kdlab.models import resnet8
    >>> student = normed(resnet8(num_classes=10), layer="layer3", width=256).eval()
    >>> images = torch.zeros(2, 3, 32, 32)
    >>> bool(torch.allclose(student.merged()(images), student(images), atol=1e-5))
    True
    """
    student = Normed(network, layer, width, copies, logit_scale)
    return student if weights is None else load_weights(student, weights)


def _linear(before: int, after: int) -> nn.Sequential:
    """Return a 1 x 1 convolution with batch normalization."""
    layers = nn.Sequential(nn.Conv2d(before, after, 1, bias=False), nn.BatchNorm2d(after))
    initialize_convolutions(layers)
    return layers


def _as_matrix(part: nn.Sequential) -> tuple[Tensor, Tensor]:
    """Return convolution and normalization (by running statistics) as one float64 matrix and shift."""
    exact = copy.deepcopy(part).double().eval()
    fused = fuse_conv_bn_eval(cast(nn.Conv2d, exact[0]), cast(nn.BatchNorm2d, exact[1]))
    assert fused.bias is not None
    return fused.weight.flatten(1), fused.bias
