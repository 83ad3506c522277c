"""MobileNets of the distillation benchmarks: V2 of half width for CIFAR-100, V1 for ImageNet."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from kdlab.errors import InputError
from kdlab.models.blocks import conv_bn_relu, initialize_convolutions
from kdlab.models.weights import load_weights

# Per group: expansion of its blocks (None: the network's), channels at width 1, number of blocks, first stride.
_GROUPS = (
    (1, 16, 1, 1),
    (None, 24, 2, 1),
    (None, 32, 3, 2),
    (None, 64, 4, 2),
    (None, 96, 3, 1),
    (None, 160, 3, 2),
    (None, 320, 1, 1),
)

# Per pair of depthwise and 1x1 convolution of MobileNetV1: channels before, channels after, stride.
_PAIRS = (
    (32, 64, 1),
    (64, 128, 2),
    (128, 128, 1),
    (128, 256, 2),
    (256, 256, 1),
    (256, 512, 2),
    *((512, 512, 1),) * 5,
    (512, 1024, 2),
    (1024, 1024, 1),
)


class InvertedResidual(nn.Module):
    """A 1x1 convolution to more channels, a depthwise 3x3 and a 1x1 to few, without ReLU after the last.

    The input is added if the shape does not change.
    """

    def __init__(self, before: int, after: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = before * expansion
        self.conv = nn.Sequential(
            *conv_bn_relu(before, wide, 1),
            *conv_bn_relu(wide, wide, 3, stride, groups=wide),
            nn.Conv2d(wide, after, 1, bias=False),
            nn.BatchNorm2d(after),
        )
        self.residual = stride == 1 and before == after

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, before, H, W) to (B, after, H/stride, W/stride)."""
        out: Tensor = self.conv(x)
        return x + out if self.residual else out


class MobileNetV2(nn.Module):
    """Seven groups of inverted residuals between two convolutions, with a stem of stride 2 for images of 32 x 32.

    Layers to tap, for images of H x W: ``conv1`` (stem, H/2 x W/2), ``blocks.1`` (H/2 x W/2), ``blocks.2``
    (H/4 x W/4), ``blocks.4`` (H/8 x W/8) and ``blocks.6`` (H/16 x W/16), as RepDistiller and mdistiller compare them.
    The groups end without a ReLU, so their values before and after activation are the same; ``conv2`` (1280 channels,
    H/16 x W/16) and the stem end with one. ``classifier.0`` gives the logits; its input is ``conv2`` averaged over all
    positions. The keys of ``state_dict`` are those of RepDistiller and mdistiller.

    Args:
        expansion: factor on the channels inside the blocks, except for the first, which has 1.
        width: factor on the channels outside the blocks, rounded down; the last convolution keeps at least 1280.
        num_classes: K, the number of logits.
        in_channels: channels of the images.

    Shapes:
        input (B, in_channels, H, W) of any size (the released code takes only 32 x 32); output (B, K).

    Raises:
        InputError: ``expansion`` or ``width`` leaves a layer without channels.
    """

    def __init__(self, expansion: int = 6, width: float = 0.5, num_classes: int = 100, in_channels: int = 3) -> None:
        super().__init__()
        if expansion < 1 or int(16 * width) < 1:
            raise InputError(f"expansion must be at least 1 and width at least 1/16, not {expansion!r} and {width!r}.")
        before = int(32 * width)
        self.conv1 = nn.Sequential(*conv_bn_relu(in_channels, before, 3, stride=2))
        self.blocks = nn.ModuleList()
        for factor, channels, count, stride in _GROUPS:
            after, inside = int(channels * width), factor or expansion
            self.blocks.append(
                nn.Sequential(
                    InvertedResidual(before, after, stride, inside),
                    *(InvertedResidual(after, after, 1, inside) for _ in range(count - 1)),
                )
            )
            before = after
        last = max(1280, int(1280 * width))
        self.conv2 = nn.Sequential(*conv_bn_relu(before, last, 1))
        classifier = nn.Linear(last, num_classes)
        self.classifier = nn.Sequential(classifier)
        initialize_convolutions(self)
        nn.init.normal_(classifier.weight, std=0.01)
        nn.init.zeros_(classifier.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (B, K) of images (B, in_channels, H, W)."""
        x = self.conv1(x)
        for group in self.blocks:
            x = group(x)
        x = self.conv2(x)
        logits: Tensor = self.classifier(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


class MobileNetV1(nn.Module):
    """A 3x3 convolution and 13 pairs of depthwise 3x3 and 1x1 convolution, for images of 224 x 224.

    Layers to tap, for images of H x W: ``model.3`` (128 channels, H/4 x W/4), ``model.5`` (256, H/8 x W/8),
    ``model.11`` (512, H/16 x W/16) and ``model.13`` (1024, H/32 x W/32) are after their last ReLU, as mdistiller
    compares them; ``model.0`` is the stem (32, H/2 x W/2). The values BEFORE that ReLU are those of the batch
    normalization ``model.3.4``, ``model.5.4``, ``model.11.4`` and ``model.13.4``. ``fc`` gives the logits; its input
    is ``model.13`` averaged over all positions. The keys of ``state_dict`` are those of mdistiller.

    Args:
        num_classes: K, the number of logits.
        in_channels: channels of the images.

    Shapes:
        input (B, in_channels, H, W) of any size (the released code takes only 224 x 224); output (B, K).
    """

    def __init__(self, num_classes: int = 1000, in_channels: int = 3) -> None:
        super().__init__()
        self.model = nn.Sequential(
            nn.Sequential(*conv_bn_relu(in_channels, 32, 3, stride=2)),
            *(
                nn.Sequential(*conv_bn_relu(before, before, 3, stride, groups=before), *conv_bn_relu(before, after, 1))
                for before, after, stride in _PAIRS
            ),
        )
        self.fc = nn.Linear(1024, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (B, K) of images (B, in_channels, H, W)."""
        x = self.model(x)
        logits: Tensor = self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


def mobilenet_v2_half(num_classes: int = 100, in_channels: int = 3, weights: str | None = None) -> MobileNetV2:
    """Build the :class:`MobileNetV2` of expansion 6 and width 0.5 ("mobile_half").

    It has 812,836 parameters for 100 classes. Sandler, Howard, Zhu, Zhmoginov and Chen, "MobileNetV2: Inverted
    Residuals and Linear Bottlenecks", CVPR 2018, arXiv 1801.04381; in the form for small images of the code of Tian,
    Krishnan and Isola, "Contrastive Representation Distillation", ICLR 2020, arXiv 1910.10699. Differences from the
    paper: ReLU instead of ReLU6, stride 1 in the second group, a 1x1 convolution also in the block of expansion 1, no
    dropout; convolutions are initialized Kaiming, fan out, the classifier normal with standard deviation 0.01 and zero
    bias. Taps at 32 x 32: ``conv1`` 16 channels 16 x 16, ``blocks.1`` 12 at 16 x 16, ``blocks.2`` 16 at 8 x 8,
    ``blocks.4`` 48 at 4 x 4, ``blocks.6`` 160 at 2 x 2. That code trains it as a student with a learning rate of 0.01,
    ResNets and VGGs with 0.05.

    Args:
        num_classes: number of logits.
        in_channels: channels of the images (1 for MNIST and digits).
        weights: a weights file, see :func:`kdlab.models.load_weights`; published files load unchanged.

    Raises:
        InputError: the weights do not fit.
    """
    network = MobileNetV2(6, 0.5, num_classes, in_channels)
    return network if weights is None else load_weights(network, weights)


def mobilenet_v1(num_classes: int = 1000, in_channels: int = 3, weights: str | None = None) -> MobileNetV1:
    """Build the :class:`MobileNetV1` of full width.

    It has 4,231,976 parameters for 1000 classes. Howard, Zhu, Chen, Kalenichenko, Wang, Weyand, Andreetto and Adam,
    "MobileNets: Efficient Convolutional Neural Networks for Mobile Vision Applications", 2017, arXiv 1704.04861; the
    ImageNet student of the code of Zhao, Cui, Song, Qiu and Liang, "Decoupled Knowledge Distillation", CVPR 2022, arXiv
    2203.08679, with PyTorch's initialization.

    Args:
        num_classes: number of logits.
        in_channels: channels of the images.
        weights: a weights file, see :func:`kdlab.models.load_weights`; published files load unchanged.

    Raises:
        InputError: the weights do not fit.
    """
    network = MobileNetV1(num_classes, in_channels)
    return network if weights is None else load_weights(network, weights)
