"""Bidirectional feature pyramid over the stages of a network, for FRSKD."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdlab.losses.feature.connectors import BatchNorm


class BiFPN(nn.Module):
    """FRSKD's self-teacher: a refined map for each stage, of the stage's size, and logits.

    Args:
        classes: K.
        channels: channels of the stages' maps, from shallow to deep.
        width: the pyramid's maps have this many times their stage's channels.
        depth: separable convolutions that refine one map.
    """

    def __init__(self, classes: int, channels: Sequence[int], width: int, depth: int) -> None:
        super().__init__()
        wide, last = [width * each for each in channels], len(channels) - 1
        self.enter = nn.ModuleList([_pointwise(*each) for each in zip(channels, wide, strict=True)])
        self.skip = nn.ModuleList([_pointwise(*each) for each in zip(channels[1:], wide[1:], strict=True)])
        self.from_deeper = nn.ModuleList([_pointwise(wide[i + 1], wide[i]) for i in range(last)])
        self.from_shallower = nn.ModuleList([_pointwise(wide[i], wide[i + 1]) for i in range(last)])
        self.refine_down = nn.ModuleList([_separable(each, depth) for each in wide[:-1]])
        self.refine_up = nn.ModuleList([_separable(each, depth) for each in wide[1:]])
        self.weights_down = nn.ParameterList([torch.ones(2) for _ in range(last)])
        self.weights_up = nn.ParameterList([torch.ones(3 if i < last - 1 else 2) for i in range(last)])
        self.classifier = nn.Linear(wide[-1], classes)

    def forward(self, stages: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Return the refined maps and logits (B, K) from the stages' maps (B, C, H, W), all maps nonnegative."""
        entered = [enter(x) for enter, x in zip(self.enter, stages, strict=True)]
        down, last = [entered[-1]], len(stages) - 1
        for i in reversed(range(last)):
            deeper = self.from_deeper[i](F.interpolate(down[0].relu(), entered[i].shape[2:], mode="nearest"))
            down.insert(0, self.refine_down[i](_fused(self.weights_down[i], [entered[i], deeper])))
        up = [down[0]]
        for i in range(last):
            shallower = self.from_shallower[i](pooled(up[-1].relu(), stages[i + 1].shape[2:]))
            # The deepest stage has no top-down map.
            between = [down[i + 1].relu()] if i < last - 1 else []
            parts = [self.skip[i](stages[i + 1]), *between, shallower]
            up.append(self.refine_up[i](_fused(self.weights_up[i], parts)))
        refined = [x.relu() for x in up]
        scores: Tensor = self.classifier(refined[-1].mean((2, 3)))
        return refined, scores


def pooled(x: Tensor, size: Sequence[int]) -> Tensor:
    """Max-pool a nonnegative map: 3 x 3 with stride 2 where that gives ``size``, else adaptive.

    >>> pooled(torch.arange(4.0).view(1, 1, 1, 4), (1, 2))
    tensor([[[[2., 3.]]]])
    """
    missing = [(math.ceil(n / 2) - 1) * 2 - n + 3 for n in x.shape[2:]]
    if list(size) != [math.ceil(n / 2) for n in x.shape[2:]]:
        return F.adaptive_max_pool2d(x, list(size))
    (top, bottom), (left, right) = ((n // 2, n - n // 2) for n in missing)
    return F.max_pool2d(F.pad(x, [left, right, top, bottom]), 3, 2)


def _fused(weights: Tensor, parts: Sequence[Tensor]) -> Tensor:
    """Return the mean of the maps with trained nonnegative weights."""
    shares = weights.relu() / (weights.relu().sum() + 1e-6)
    return torch.stack([share * part for share, part in zip(shares, parts, strict=True)]).sum(0)


def _pointwise(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(before, after, 1, bias=False), BatchNorm(after), nn.ReLU())


def _separable(channels: int, depth: int) -> nn.Sequential:
    parts: list[nn.Module] = []
    for number in range(depth):
        parts += [nn.ReLU()] if number else []
        parts += [
            nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False),
            nn.Conv2d(channels, channels, 1, bias=False),
            BatchNorm(channels),
        ]
    return nn.Sequential(*parts)
