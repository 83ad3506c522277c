"""ShuffleNets for small images, as in the CIFAR-100 distillation benchmarks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdlab.errors import InputError
from kdlab.models.weights import load_weights


def _shuffle(x: Tensor, groups: int) -> Tensor:
    """Interleave the channels of the groups: the first of each group, the second of each group, ..."""
    batch, channels, height, width = x.shape
    return x.reshape(batch, groups, channels // groups, height, width).transpose(1, 2).flatten(1, 2)


def _depthwise(channels: int, stride: int) -> nn.Conv2d:
    """Return a depthwise 3x3 convolution without bias."""
    return nn.Conv2d(channels, channels, 3, stride, padding=1, groups=channels, bias=False)


class GroupedUnit(nn.Module):
    """ShuffleNetV1's unit: grouped 1x1, shuffle, depthwise 3x3, grouped 1x1; with stride 2 the input is concatenated.

    ``preact`` is the sum or the concatenation before the last ReLU, ``relu3`` after it.
    """

    def __init__(self, before: int, after: int, stride: int, entry_groups: int, groups: int) -> None:
        super().__init__()
        width = after - before if stride == 2 else after
        self.entry_groups, self.stride = entry_groups, stride
        self.conv1 = nn.Conv2d(before, width // 4, 1, groups=entry_groups, bias=False)
        self.bn1 = nn.BatchNorm2d(width // 4)
        self.relu1 = nn.ReLU()
        self.conv2 = _depthwise(width // 4, stride)
        self.bn2 = nn.BatchNorm2d(width // 4)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(width // 4, width, 1, groups=groups, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.preact = nn.Identity()
        self.relu3 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, before, H, W) to (B, after, H/stride, W/stride)."""
        branch = _shuffle(self.relu1(self.bn1(self.conv1(x))), self.entry_groups)
        branch = self.bn3(self.conv3(self.relu2(self.bn2(self.conv2(branch)))))
        merged = torch.cat([branch, F.avg_pool2d(x, 3, stride=2, padding=1)], 1) if self.stride == 2 else branch + x
        out: Tensor = self.relu3(self.preact(merged))
        return out


class ShuffleNetV1(nn.Module):
    """A 1x1 stem of 24 channels and three stages of 4, 8, 4 units with 240, 480, 960 channels, in 3 groups.

    Layers to tap, for images of H x W: ``relu`` (stem, H x W), ``layer1`` (H/2 x W/2), ``layer2`` (H/4 x W/4),
    ``layer3`` (H/8 x W/8) are after their last ReLU; BEFORE it ``layer1.3.preact``, ``layer2.7.preact``,
    ``layer3.3.preact``. ``linear`` gives the logits; its input is ``layer3`` averaged over all positions. ``preact``
    has no parameters: the keys of ``state_dict`` are those of RepDistiller and mdistiller.

    Args:
        num_classes: K, the number of logits.
        in_channels: channels of the images.

    Shapes:
        input (B, in_channels, H, W) of any size (the released code takes only 32 x 32); output (B, K).
    """

    def __init__(self, num_classes: int = 100, in_channels: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 24, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(24)
        self.relu = nn.ReLU()
        self.layer1 = _grouped_stage(4, 24, 240, entry_groups=1)
        self.layer2 = _grouped_stage(8, 240, 480, entry_groups=3)
        self.layer3 = _grouped_stage(4, 480, 960, entry_groups=3)
        self.linear = nn.Linear(960, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (B, K) of images (B, in_channels, H, W)."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


def _grouped_stage(units: int, before: int, after: int, entry_groups: int) -> nn.Sequential:
    """Return the units of one stage; the first one has stride 2."""
    return nn.Sequential(
        GroupedUnit(before, after, 2, entry_groups, groups=3),
        *(GroupedUnit(after, after, 1, 3, groups=3) for _ in range(units - 1)),
    )


class SplitUnit(nn.Module):
    """ShuffleNetV2's unit: half of the channels pass unchanged, half through 1x1, depthwise 3x3 and 1x1.

    ``preact`` is the concatenation of both halves before the last ReLU and before the final shuffle.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = nn.Conv2d(half, half, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(half)
        self.relu1 = nn.ReLU()
        self.conv2 = _depthwise(half, stride=1)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(half, half, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)
        self.preact = nn.Identity()
        self.relu3 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        identity, branch = x.chunk(2, dim=1)
        branch = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(branch)))))
        branch = self.bn3(self.conv3(branch))
        # The identity half is the output of a ReLU already, so one ReLU over both halves does not change it.
        return _shuffle(self.relu3(self.preact(torch.cat([identity, branch], 1))), 2)


class DownUnit(nn.Module):
    """ShuffleNetV2's unit of stride 2: two branches read all channels; their outputs are joined and shuffled."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        half = after // 2
        self.conv1 = _depthwise(before, stride=2)
        self.bn1 = nn.BatchNorm2d(before)
        self.conv2 = nn.Conv2d(before, half, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(before, half, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)
        self.relu3 = nn.ReLU()
        self.conv4 = _depthwise(half, stride=2)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = nn.Conv2d(half, half, 1, bias=False)
        self.bn5 = nn.BatchNorm2d(half)
        self.relu5 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, before, H, W) to (B, after, H/2, W/2)."""
        left = self.relu2(self.bn2(self.conv2(self.bn1(self.conv1(x)))))
        right = self.bn4(self.conv4(self.relu3(self.bn3(self.conv3(x)))))
        right = self.relu5(self.bn5(self.conv5(right)))
        return _shuffle(torch.cat([left, right], 1), 2)


class ShuffleNetV2(nn.Module):
    """A 1x1 stem of 24 channels, three stages of 1 unit of stride 2 and 3, 7, 3 others, and a 1x1 convolution.

    Layers to tap, for images of H x W: ``relu`` (stem, H x W), ``layer1`` (H/2 x W/2), ``layer2`` (H/4 x W/4),
    ``layer3`` (H/8 x W/8) are after their last ReLU. BEFORE it, as RepDistiller and mdistiller take it:
    ``layer1.3.preact``, ``layer2.7.preact``, ``layer3.3.preact``; half of those channels are the unit's unchanged
    input, and all are in the order before the shuffle. ``relu2`` (H/8 x W/8) follows the last convolution, ``bn2`` is
    before it. ``linear`` gives the logits; its input is ``relu2`` averaged over all positions. ``preact`` has no
    parameters: the keys of ``state_dict`` are those of RepDistiller, mdistiller and SimKD.

    Args:
        widths: channels of the three stages and of the last convolution; the stages' are even.
        num_classes: K, the number of logits.
        in_channels: channels of the images.

    Shapes:
        input (B, in_channels, H, W) of any size (the released code takes only 32 x 32); output (B, K).

    Raises:
        InputError: there are not four widths, or a stage's is odd.
    """

    def __init__(self, widths: Sequence[int], num_classes: int = 100, in_channels: int = 3) -> None:
        super().__init__()
        if len(widths) != 4 or any(width % 2 for width in widths[:3]):
            raise InputError(
                f"widths must be four numbers, three even ones for the stages and one for the last convolution, "
                f"not {widths!r}."
            )
        self.conv1 = nn.Conv2d(in_channels, 24, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(24)
        self.relu = nn.ReLU()
        self.layer1 = _split_stage(3, 24, widths[0])
        self.layer2 = _split_stage(7, widths[0], widths[1])
        self.layer3 = _split_stage(3, widths[1], widths[2])
        self.conv2 = nn.Conv2d(widths[2], widths[3], 1, bias=False)
        self.bn2 = nn.BatchNorm2d(widths[3])
        self.relu2 = nn.ReLU()
        self.linear = nn.Linear(widths[3], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (B, K) of images (B, in_channels, H, W)."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        x = self.relu2(self.bn2(self.conv2(x)))
        logits: Tensor = self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


def _split_stage(units: int, before: int, after: int) -> nn.Sequential:
    """Return a unit of stride 2 and ``units`` further ones."""
    return nn.Sequential(DownUnit(before, after), *(SplitUnit(after) for _ in range(units)))


def shuffle_v1(num_classes: int = 100, in_channels: int = 3, weights: str | None = None) -> ShuffleNetV1:
    """Build the :class:`ShuffleNetV1` of 3 groups.

    It has 949,258 parameters for 100 classes. Zhang, Zhou, Lin and Sun, "ShuffleNet: An Extremely Efficient
    Convolutional Neural Network for Mobile Devices", CVPR 2018, arXiv 1707.01083; in the form for small images of the
    code of Tian, Krishnan and Isola, "Contrastive Representation Distillation", ICLR 2020, arXiv 1910.10699, with
    PyTorch's initialization. Differences from the paper: a 1x1 stem without stride or pooling, and a ReLU after the
    depthwise convolution. Taps at 32 x 32: ``layer1`` 240 channels 16 x 16, ``layer2`` 480 at 8 x 8, ``layer3`` 960 at
    4 x 4. That code trains ShuffleNets as students with a learning rate of 0.01, ResNets and VGGs with 0.05.

    Args:
        num_classes: number of logits.
        in_channels: channels of the images (1 for MNIST and digits).
        weights: a weights file, see :func:`kdlab.models.load_weights`; published files load unchanged.

    Raises:
        InputError: the weights do not fit.
    """
    network = ShuffleNetV1(num_classes, in_channels)
    return network if weights is None else load_weights(network, weights)


def shuffle_v2(num_classes: int = 100, in_channels: int = 3, weights: str | None = None) -> ShuffleNetV2:
    """Build the :class:`ShuffleNetV2` of size 1 (116, 232, 464 and 1024 channels).

    It has 1,355,528 parameters for 100 classes. Ma, Zhang, Zheng and Sun, "ShuffleNet V2: Practical Guidelines for
    Efficient CNN Architecture Design", ECCV 2018, arXiv 1807.11164; in the form for small images (a 1x1 stem without
    stride or pooling) of the code of Tian, Krishnan and Isola, "Contrastive Representation Distillation", ICLR 2020,
    arXiv 1910.10699, with PyTorch's initialization. Arguments and errors as for :func:`shuffle_v1`.
    """
    network = ShuffleNetV2((116, 232, 464, 1024), num_classes, in_channels)
    return network if weights is None else load_weights(network, weights)


def shuffle_v2_x1_5(num_classes: int = 100, in_channels: int = 3, weights: str | None = None) -> ShuffleNetV2:
    """Build the :class:`ShuffleNetV2` of size 1.5 (176, 352, 704 and 1024 channels).

    It has 2,580,548 parameters for 100 classes. As :func:`shuffle_v2`; a student of Chen, Mei, Zhang, Wang, Feng and
    Chen, "Knowledge Distillation with the Reused Teacher Classifier", CVPR 2022, arXiv 2203.14001.
    """
    network = ShuffleNetV2((176, 352, 704, 1024), num_classes, in_channels)
    return network if weights is None else load_weights(network, weights)
