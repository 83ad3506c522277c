"""ResNets for small images, with the names and sizes used by the CIFAR-100 distillation benchmarks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from kdlab.errors import InputError, check_word
from kdlab.models.blocks import initialize_convolutions
from kdlab.models.weights import load_weights

Shortcut = Literal["projection", "pad"]
"""The shortcut where the shape changes: 1x1 convolution and BatchNorm, or no parameters (He et al., option A)."""


class PadShortcut(nn.Module):
    """Every ``stride``-th pixel, with as many zero channels before as after the input's."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.zeros = (after - before) // 2, after - before - (after - before) // 2

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, before, H, W) to (B, after, H/stride, W/stride)."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, *self.zeros))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; ``preact`` is their sum before the last ReLU, ``relu2`` after it."""

    def __init__(self, before: int, after: int, stride: int, shortcut: Shortcut = "projection") -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.downsample: nn.Module | None = None
        if (stride != 1 or before != after) and shortcut == "pad":
            self.downsample = PadShortcut(before, after, stride)
        elif stride != 1 or before != after:
            self.downsample = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))
        self.preact = nn.Identity()
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, before, H, W) to (B, after, H/stride, W/stride)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu1(self.bn1(self.conv1(x)))
        x = self.preact(self.bn2(self.conv2(x)) + shortcut)
        out: Tensor = self.relu2(x)
        return out


class ResNet(nn.Module):
    """A three-stage residual network for small images (He et al., section 4.2).

    Layers to tap, for images of H x W: ``relu`` (stem, H x W), ``layer1`` (H x W), ``layer2`` (H/2 x W/2), ``layer3``
    (H/4 x W/4) are after their last ReLU. The sum BEFORE that ReLU, which OFD and others compare, is the ``preact`` of
    the stage's last block: ``layer2.2.preact`` where a stage has three blocks (resnet20), ``layer2.0.preact`` for
    resnet8x4, ``layer2.4.preact`` for resnet32x4. ``fc`` gives the logits; its input is the pooled embedding.
    ``preact`` has no parameters: the keys of ``state_dict`` are those of RepDistiller and mdistiller.

    Args:
        depth: 6n+2 for n blocks per stage.
        widths: channels of the stem and of the three stages.
        num_classes: K, the number of logits.
        in_channels: channels of the images.
        shortcut: ``"projection"``, or ``"pad"`` for shortcuts without parameters.

    Shapes:
        input (B, in_channels, H, W) of any size (the last map is averaged over all positions); output (B, K).

    Raises:
        InputError: the depth is not 6n+2, or there are not four widths.
    """

    other_names: ClassVar[dict[str, str]] = {"linear": "fc"}
    """Names of layers in published weights files, and here."""

    def __init__(
        self,
        depth: int,
        widths: Sequence[int],
        num_classes: int = 100,
        in_channels: int = 3,
        shortcut: Shortcut = "projection",
    ) -> None:
        super().__init__()
        check_word("shortcut", shortcut, ["projection", "pad"])
        if depth < 8 or (depth - 2) % 6:
            raise InputError(f"A CIFAR ResNet has a depth of 6n+2 (8, 14, 20, 26, 32, ...), not {depth}.")
        if len(widths) != 4:
            raise InputError(f"A CIFAR ResNet has four widths (stem and three stages), not {len(widths)}.")
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU()
        self.layer1 = _stage(blocks, widths[0], widths[1], 1, shortcut)
        self.layer2 = _stage(blocks, widths[1], widths[2], 2, shortcut)
        self.layer3 = _stage(blocks, widths[2], widths[3], 2, shortcut)
        self.fc = nn.Linear(widths[3], num_classes)
        initialize_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (B, K) of images (B, in_channels, H, W)."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


def _stage(blocks: int, before: int, after: int, stride: int, shortcut: Shortcut) -> nn.Sequential:
    """Return the blocks of one stage; the first one has the stride."""
    return nn.Sequential(
        BasicBlock(before, after, stride, shortcut), *(BasicBlock(after, after, stride=1) for _ in range(blocks - 1))
    )


def _build(
    depth: int, width: int, num_classes: int, in_channels: int, weights: str | None, shortcut: Shortcut
) -> ResNet:
    """Build a ResNet with 16, 32 and 64 channels times ``width``, and a stem of 32 channels if ``width`` is not 1."""
    stem = 16 if width == 1 else 32
    network = ResNet(depth, [stem, 16 * width, 32 * width, 64 * width], num_classes, in_channels, shortcut)
    return network if weights is None else load_weights(network, weights)


def resnet8(
    num_classes: int = 100, in_channels: int = 3, weights: str | None = None, shortcut: Shortcut = "projection"
) -> ResNet:
    """Build ResNet-8, the :class:`ResNet` of depth 8 and widths 16, 32, 64.

    It has 83,892 parameters for 100 classes.

    He, Zhang, Ren and Sun, "Deep Residual Learning for Image Recognition", CVPR 2016, arXiv 1512.03385; with the
    projection shortcuts and the initialization (Kaiming, fan out) of the code of Tian, Krishnan and Isola, "Contrastive
    Representation Distillation", ICLR 2020, arXiv 1910.10699. The other ResNets of this module are built the same way.

    Args:
        num_classes: number of logits.
        in_channels: channels of the images (1 for MNIST and digits).
        weights: a weights file, see :func:`kdlab.models.load_weights`; published teachers load unchanged.
        shortcut: ``"projection"``, or ``"pad"`` for the shortcuts without parameters of He et al. (option A), as in the
            CIFAR-10 networks of Y. Idelbayev (github.com/akamaster/pytorch_resnet_cifar10): ``resnet20(10,
            weights="resnet20-12fca82f.th", shortcut="pad")``.

    Raises:
        InputError: the weights do not fit, or the shortcut is neither.
    """
    return _build(8, 1, num_classes, in_channels, weights, shortcut)


def resnet14(
    num_classes: int = 100, in_channels: int = 3, weights: str | None = None, shortcut: Shortcut = "projection"
) -> ResNet:
    """Build ResNet-14, the :class:`ResNet` of depth 14 and widths 16, 32, 64.

    It has 181,108 parameters for 100 classes. Taps before the last ReLUs: ``layer1.1.preact``, ``layer2.1.preact``,
    ``layer3.1.preact``. Paper, arguments and errors as for :func:`resnet8`.
    """
    return _build(14, 1, num_classes, in_channels, weights, shortcut)


def resnet20(
    num_classes: int = 100, in_channels: int = 3, weights: str | None = None, shortcut: Shortcut = "projection"
) -> ResNet:
    """Build ResNet-20, the :class:`ResNet` of depth 20 and widths 16, 32, 64.

    It has 278,324 parameters for 100 classes. Taps before the last ReLUs: ``layer1.2.preact``, ``layer2.2.preact``,
    ``layer3.2.preact``. Paper, arguments and errors as for :func:`resnet8`.
    """
    return _build(20, 1, num_classes, in_channels, weights, shortcut)


def resnet32(
    num_classes: int = 100, in_channels: int = 3, weights: str | None = None, shortcut: Shortcut = "projection"
) -> ResNet:
    """Build ResNet-32, the :class:`ResNet` of depth 32 and widths 16, 32, 64.

    It has 472,756 parameters for 100 classes. Taps before the last ReLUs: ``layer1.4.preact``, ``layer2.4.preact``,
    ``layer3.4.preact``. Paper, arguments and errors as for :func:`resnet8`.
    """
    return _build(32, 1, num_classes, in_channels, weights, shortcut)


def resnet44(
    num_classes: int = 100, in_channels: int = 3, weights: str | None = None, shortcut: Shortcut = "projection"
) -> ResNet:
    """Build ResNet-44, the :class:`ResNet` of depth 44 and widths 16, 32, 64.

    It has 667,188 parameters for 100 classes. Taps before the last ReLUs: ``layer1.6.preact``, ``layer2.6.preact``,
    ``layer3.6.preact``. Paper, arguments and errors as for :func:`resnet8`.
    """
    return _build(44, 1, num_classes, in_channels, weights, shortcut)


def resnet56(
    num_classes: int = 100, in_channels: int = 3, weights: str | None = None, shortcut: Shortcut = "projection"
) -> ResNet:
    """Build ResNet-56, the :class:`ResNet` of depth 56 and widths 16, 32, 64.

    It has 861,620 parameters for 100 classes. Taps before the last ReLUs: ``layer1.8.preact``, ``layer2.8.preact``,
    ``layer3.8.preact``. Paper, arguments and errors as for :func:`resnet8`.
    """
    return _build(56, 1, num_classes, in_channels, weights, shortcut)


def resnet110(
    num_classes: int = 100, in_channels: int = 3, weights: str | None = None, shortcut: Shortcut = "projection"
) -> ResNet:
    """Build ResNet-110, the :class:`ResNet` of depth 110 and widths 16, 32, 64.

    It has 1,736,564 parameters for 100 classes. Taps before the last ReLUs: ``layer1.17.preact``, ``layer2.17.preact``,
    ``layer3.17.preact``. Paper, arguments and errors as for :func:`resnet8`.
    """
    return _build(110, 1, num_classes, in_channels, weights, shortcut)


def resnet8x4(
    num_classes: int = 100, in_channels: int = 3, weights: str | None = None, shortcut: Shortcut = "projection"
) -> ResNet:
    """Build the :class:`ResNet` of depth 8 and widths 64, 128, 256, with a stem of 32 channels.

    It has 1,233,540 parameters for 100 classes. Taps before the last ReLUs: ``layer1.0.preact``, ``layer2.0.preact``,
    ``layer3.0.preact``. Paper, arguments and errors as for :func:`resnet8`.
    """
    return _build(8, 4, num_classes, in_channels, weights, shortcut)


def resnet32x4(
    num_classes: int = 100, in_channels: int = 3, weights: str | None = None, shortcut: Shortcut = "projection"
) -> ResNet:
    """Build the :class:`ResNet` of depth 32 and widths 64, 128, 256, with a stem of 32 channels.

    It has 7,433,860 parameters for 100 classes. Taps before the last ReLUs: ``layer1.4.preact``, ``layer2.4.preact``,
    ``layer3.4.preact``. Paper, arguments and errors as for :func:`resnet8`.
    """
    return _build(32, 4, num_classes, in_channels, weights, shortcut)
