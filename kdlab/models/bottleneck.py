"""ResNet-18 and ResNet-50 for small images, as in the CIFAR-100 distillation benchmarks."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from kdlab.errors import InputError
from kdlab.models.blocks import initialize_convolutions
from kdlab.models.weights import load_weights


class PlainBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; ``preact`` is their sum before the last ReLU, ``relu2`` after it."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = _shortcut(before, width, stride)
        self.preact = nn.Identity()
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, before, H, W) to (B, width, H/stride, W/stride)."""
        shortcut = self.shortcut(x)
        x = self.relu1(self.bn1(self.conv1(x)))
        x = self.preact(self.bn2(self.conv2(x)) + shortcut)
        out: Tensor = self.relu2(x)
        return out


class Bottleneck(nn.Module):
    """A 1x1, a 3x3 and a 1x1 convolution to four times the width, and a shortcut.

    ``preact`` is their sum before the last ReLU, ``relu3`` after it. The 3x3 convolution has the stride.
    """

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.shortcut = _shortcut(before, 4 * width, stride)
        self.preact = nn.Identity()
        self.relu3 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, before, H, W) to (B, 4 * width, H/stride, W/stride)."""
        shortcut = self.shortcut(x)
        x = self.relu1(self.bn1(self.conv1(x)))
        x = self.relu2(self.bn2(self.conv2(x)))
        x = self.preact(self.bn3(self.conv3(x)) + shortcut)
        out: Tensor = self.relu3(x)
        return out


def _shortcut(before: int, after: int, stride: int) -> nn.Sequential:
    """Return a projection if the shape changes, else an empty Sequential, which is the identity and has no keys."""
    if stride == 1 and before == after:
        return nn.Sequential()
    return nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))


class FourStageResNet(nn.Module):
    """A residual network of four stages, 64, 128, 256 and 512 wide, with a 3x3 stem that keeps the size.

    Layers to tap, for images of H x W: ``relu`` (stem, H x W), ``layer1`` (H x W), ``layer2`` (H/2 x W/2), ``layer3``
    (H/4 x W/4), ``layer4`` (H/8 x W/8) are after their last ReLU. The sum BEFORE that ReLU is the ``preact`` of the
    stage's last block, as in ``layer2.1.preact`` where a stage has two. ``linear`` gives the logits; its input is
    ``layer4`` averaged over all positions. ``preact`` has no parameters: the keys of ``state_dict`` are those of
    RepDistiller's and mdistiller's ``ResNet18`` and ``ResNet50``, which have ``shortcut`` and ``linear`` where
    torchvision has ``downsample`` and ``fc``.

    Args:
        blocks: blocks in each of the four stages.
        bottleneck: whether blocks are 1x1, 3x3 and 1x1 convolutions with four times the channels, instead of two 3x3.
        num_classes: K, the number of logits.
        in_channels: channels of the images.

    Shapes:
        input (B, in_channels, H, W) of any size; output (B, K).

    Raises:
        InputError: ``blocks`` does not give four stages of at least one block each.
    """

    def __init__(self, blocks: Sequence[int], bottleneck: bool, num_classes: int = 100, in_channels: int = 3) -> None:
        super().__init__()
        if len(blocks) != 4 or min(blocks) < 1:
            raise InputError(f"blocks must be four numbers of at least 1, one per stage, not {blocks!r}.")
        factor = 4 if bottleneck else 1
        self.conv1 = nn.Conv2d(in_channels, 64, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU()
        self.layer1 = _stage(blocks[0], 64, 64, 1, bottleneck)
        self.layer2 = _stage(blocks[1], 64 * factor, 128, 2, bottleneck)
        self.layer3 = _stage(blocks[2], 128 * factor, 256, 2, bottleneck)
        self.layer4 = _stage(blocks[3], 256 * factor, 512, 2, bottleneck)
        self.linear = nn.Linear(512 * factor, num_classes)
        initialize_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (B, K) of images (B, in_channels, H, W)."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


def _stage(blocks: int, before: int, width: int, stride: int, bottleneck: bool) -> nn.Sequential:
    """Return the blocks of one stage; the first one has the stride."""
    block, after = (Bottleneck, 4 * width) if bottleneck else (PlainBlock, width)
    return nn.Sequential(block(before, width, stride), *(block(after, width, 1) for _ in range(blocks - 1)))


def cifar_resnet18(num_classes: int = 100, in_channels: int = 3, weights: str | None = None) -> FourStageResNet:
    """Build ResNet-18, a :class:`FourStageResNet` of two plain blocks per stage.

    It has 11,220,132 parameters for 100 classes.

    He, Zhang, Ren and Sun, "Deep Residual Learning for Image Recognition", CVPR 2016, arXiv 1512.03385; in the form
    for small images (3x3 stem, no max-pooling) and with the initialization (Kaiming, fan out) of the code of Tian,
    Krishnan and Isola, "Contrastive Representation Distillation", ICLR 2020, arXiv 1910.10699. The stages
    have 64, 128, 256 and 512 channels; the taps before their last ReLU are ``layer1.1.preact`` to ``layer4.1.preact``.

    Args:
        num_classes: number of logits (200 for the Tiny-ImageNet teacher of mdistiller).
        in_channels: channels of the images (1 for MNIST and digits).
        weights: a weights file, see :func:`kdlab.models.load_weights`; published teachers load unchanged.

    Raises:
        InputError: the weights do not fit.
    """
    network = FourStageResNet((2, 2, 2, 2), False, num_classes, in_channels)
    return network if weights is None else load_weights(network, weights)


def cifar_resnet50(num_classes: int = 100, in_channels: int = 3, weights: str | None = None) -> FourStageResNet:
    """Build ResNet-50, a :class:`FourStageResNet` of 3, 4, 6 and 3 bottlenecks.

    It has 23,705,252 parameters for 100 classes. The stages have 256, 512, 1024 and 2048 channels; the taps before
    their last ReLU are ``layer1.2.preact``, ``layer2.3.preact``, ``layer3.5.preact`` and ``layer4.2.preact``. Paper,
    arguments and errors as for :func:`cifar_resnet18`.
    """
    network = FourStageResNet((3, 4, 6, 3), True, num_classes, in_channels)
    return network if weights is None else load_weights(network, weights)
