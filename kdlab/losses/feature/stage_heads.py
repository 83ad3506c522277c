"""Trained parts on the stages of a network: heads, a fused classifier, a discriminator."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdlab.losses.feature.connectors import BatchNorm

HIDDEN = 128  # of a discriminator


class StageHead(nn.Module):
    """Residual blocks in place of the later stages, and a classifier.

    Args:
        classes: K.
        channels: channels of the map and of every later stage.
        strides: strides of the later stages.
        blocks: residual blocks in place of each later stage.
    """

    def __init__(self, classes: int, channels: Sequence[int], strides: Sequence[int], blocks: int) -> None:
        super().__init__()
        self.stages = nn.Sequential(
            *(
                nn.Sequential(
                    *(_Block(after if number else before, after, 1 if number else stride) for number in range(blocks))
                )
                for before, after, stride in zip(channels[:-1], channels[1:], strides, strict=True)
            )
        )
        self.classifier = nn.Linear(channels[-1], classes)

    def forward(self, x: Tensor, size: torch.Size) -> tuple[Tensor, Tensor]:
        """Return the map in the shape of the last stage, (B, C, *size), and logits (B, K)."""
        x = self.stages(x)
        if x.shape[2:] != size:
            x = F.adaptive_avg_pool2d(x, (size[0], size[1]))
        scores: Tensor = self.classifier(x.mean((2, 3)))
        return x, scores


class _Block(nn.Module):
    """Two 3 x 3 convolutions and a shortcut, with batch normalization and ReLU (ResNet's basic block)."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.norm1, self.norm2 = BatchNorm(after), BatchNorm(after)
        self.shortcut = nn.Sequential()
        if stride != 1 or before != after:
            self.shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), BatchNorm(after))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, before, H, W) to (B, after, H / stride, W / stride), rounded up."""
        inner = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(inner)) + self.shortcut(x))


class Fused(nn.Module):
    """Logits from several maps of one shape: a 1 x 1 convolution, mean over positions, linear."""

    def __init__(self, classes: int, channels: int, maps: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(maps * channels, channels, 1, bias=False)
        self.classifier = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, maps * channels, H, W) to logits (B, K)."""
        scores: Tensor = self.classifier(self.conv(x).mean((2, 3)))
        return scores


def discriminator(channels: int) -> nn.Sequential:
    """Return linear, ReLU, linear, with two outputs, one for each kind of map."""
    return nn.Sequential(nn.Linear(channels, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 2))


def reversed_gradient(x: Tensor) -> Tensor:
    """Return ``x`` with a reversed gradient.

    >>> x = torch.tensor(3.0, requires_grad=True)
    >>> reversed_gradient(x).square().backward()
    >>> x.grad
    tensor(-6.)
    """
    return 2 * x.detach() - x
