"""Wide residual networks for small images, with the names and sizes used by the CIFAR-100 distillation benchmarks."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from kdlab.errors import InputError
from kdlab.models.blocks import initialize_convolutions
from kdlab.models.weights import load_weights


class WideBlock(nn.Module):
    """BatchNorm, ReLU and 3x3 convolution, twice, plus a shortcut.

    The shortcut is the input itself, or a 1x1 convolution of the activated input if the number of channels changes.
    """

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(before)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.relu2 = nn.ReLU()
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.convShortcut = None if before == after else nn.Conv2d(before, after, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, before, H, W) to (B, after, H/stride, W/stride)."""
        active = self.relu1(self.bn1(x))
        shortcut = x if self.convShortcut is None else self.convShortcut(active)
        out: Tensor = self.conv2(self.relu2(self.bn2(self.conv1(active)))) + shortcut
        return out


class WideStage(nn.Module):
    """Blocks of one width, in ``layer``; the first one has the stride."""

    def __init__(self, blocks: int, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.layer = nn.Sequential(
            WideBlock(before, after, stride), *(WideBlock(after, after, stride=1) for _ in range(blocks - 1))
        )

    def forward(self, x: Tensor) -> Tensor:
        """Run the blocks one after the other."""
        out: Tensor = self.layer(x)
        return out


class WideResNet(nn.Module):
    """A three-stage wide residual network for small images, with pre-activation blocks.

    Layers to tap, for images of H x W: ``conv1`` (stem, H x W), ``block1`` (H x W), ``block2`` (H/2 x W/2), ``block3``
    (H/4 x W/4) are the bare residual sums, as RepDistiller and mdistiller compare them. The same sums after the
    BatchNorm that follows, before its ReLU, are ``block2.layer.0.bn1``, ``block3.layer.0.bn1`` and ``bn1`` (what OFD
    compares); after that ReLU, ``block2.layer.0.relu1``, ``block3.layer.0.relu1`` and ``relu``. ``fc`` gives the
    logits; its input is the pooled embedding.

    Args:
        depth: 6n+4 for n blocks per stage.
        width: factor on the channels 16, 32, 64 of the three stages; the stem keeps 16.
        num_classes: K, the number of logits.
        in_channels: channels of the images.

    Shapes:
        input (B, in_channels, H, W) of any size (the last map is averaged over all positions); output (B, K).

    Raises:
        InputError: the depth is not 6n+4.
    """

    def __init__(self, depth: int, width: int, num_classes: int = 100, in_channels: int = 3) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise InputError(f"A wide ResNet has a depth of 6n+4 (10, 16, 22, 28, 34, 40, ...), not {depth}.")
        blocks = (depth - 4) // 6
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.block1 = WideStage(blocks, 16, 16 * width, stride=1)
        self.block2 = WideStage(blocks, 16 * width, 32 * width, stride=2)
        self.block3 = WideStage(blocks, 32 * width, 64 * width, stride=2)
        self.bn1 = nn.BatchNorm2d(64 * width)
        self.relu = nn.ReLU()
        self.fc = nn.Linear(64 * width, num_classes)
        initialize_convolutions(self)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (B, K) of images (B, in_channels, H, W)."""
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        x = self.relu(self.bn1(x))
        logits: Tensor = self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


def _build(depth: int, width: int, num_classes: int, in_channels: int, weights: str | None) -> WideResNet:
    """Build a wide ResNet and load its weights file, if any."""
    network = WideResNet(depth, width, num_classes, in_channels)
    return network if weights is None else load_weights(network, weights)


def wrn_16_1(num_classes: int = 100, in_channels: int = 3, weights: str | None = None) -> WideResNet:
    """Build WRN-16-1, the :class:`WideResNet` of depth 16 and width 1.

    It has 180,916 parameters for 100 classes.

    Zagoruyko and Komodakis, "Wide Residual Networks", BMVC 2016, arXiv 1605.07146; without dropout, initialized as in
    the code of Tian, Krishnan and Isola, "Contrastive Representation Distillation", ICLR 2020, arXiv 1910.10699
    (Kaiming, fan out; classifier bias zero). The other networks of this module are built the same way.

    Args:
        num_classes: number of logits.
        in_channels: channels of the images (1 for MNIST and digits).
        weights: a weights file, see :func:`kdlab.models.load_weights`; published teachers load unchanged.

    Raises:
        InputError: the weights do not fit.
    """
    return _build(16, 1, num_classes, in_channels, weights)


def wrn_16_2(num_classes: int = 100, in_channels: int = 3, weights: str | None = None) -> WideResNet:
    """Build WRN-16-2 with 703,284 parameters for 100 classes; arguments as for :func:`wrn_16_1`."""
    return _build(16, 2, num_classes, in_channels, weights)


def wrn_40_1(num_classes: int = 100, in_channels: int = 3, weights: str | None = None) -> WideResNet:
    """Build WRN-40-1 with 569,780 parameters for 100 classes; arguments as for :func:`wrn_16_1`."""
    return _build(40, 1, num_classes, in_channels, weights)


def wrn_40_2(num_classes: int = 100, in_channels: int = 3, weights: str | None = None) -> WideResNet:
    """Build WRN-40-2 with 2,255,156 parameters for 100 classes; arguments as for :func:`wrn_16_1`."""
    return _build(40, 2, num_classes, in_channels, weights)
