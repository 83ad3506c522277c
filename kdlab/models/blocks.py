"""Pieces that several networks share: convolution blocks and their initialization."""

from __future__ import annotations

from torch import nn


def conv_bn_relu(before: int, after: int, kernel: int, stride: int = 1, groups: int = 1) -> tuple[nn.Module, ...]:
    """Return a convolution without bias that keeps the size at stride 1, batch normalization and ReLU."""
    convolution = nn.Conv2d(before, after, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    return convolution, nn.BatchNorm2d(after), nn.ReLU()


def initialize_convolutions(network: nn.Module) -> None:
    """Draw every convolution's weight from the Kaiming normal distribution with fan out, as RepDistiller does."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
