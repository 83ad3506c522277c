"""Random crop, horizontal flip and normalization of a full batch at once, on the batch's device."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from kdlab.data import counter_rng


def augment(images: Tensor, index: Tensor, seed: int, epoch: int, padding: int = 0, flip: bool = False) -> Tensor:
    """Crop every image at random after zero padding, and flip half of them, as a function of (seed, epoch, index).

    Args:
        images: (B, C, H, W), any dtype.
        index: (B,) int64, the samples' positions in their data set.
        seed: seed of the augmentation.
        epoch: the epoch number.
        padding: pixels of zeros on each side before the crop, so shifts of up to this many pixels in each direction.
        flip: flip horizontally with probability 1/2.

    Returns:
        (B, C, H, W) of the same dtype; a sample's augmentation does not depend on its batch.
    """
    if not padding and not flip:
        return images
    down = counter_rng.integers(2 * padding + 1, seed, epoch, index, counter_rng.DOWN)
    right = counter_rng.integers(2 * padding + 1, seed, epoch, index, counter_rng.RIGHT)
    mirror = counter_rng.integers(2, seed, epoch, index, counter_rng.FLIP) == 1 if flip else None
    return crop(images, down, right, mirror, padding)


def crop(images: Tensor, down: Tensor, right: Tensor, mirror: Tensor | None = None, padding: int = 0) -> Tensor:
    """Cut from every zero-padded image a window of the image's own size, by one gather for the full batch.

    Args:
        images: (B, C, H, W), any dtype.
        down: (B,) int64, first row of the window in the padded image, 0 to 2 * padding.
        right: (B,) int64, first column, likewise.
        mirror: (B,) bool, which windows are flipped horizontally; ``None`` for none.
        padding: pixels of zeros on each side.

    Returns:
        (B, C, H, W) of the same dtype.
    """
    count, channels, height, width = images.shape
    padded = F.pad(images, (padding,) * 4)
    across = torch.arange(width, device=images.device)
    columns = across if mirror is None else torch.where(mirror[:, None], width - 1 - across, across)
    columns = columns + right[:, None]
    rows = torch.arange(height, device=images.device) + down[:, None]
    places = rows[:, :, None] * (width + 2 * padding) + columns[:, None, :]
    places = places.view(count, 1, -1).expand(count, channels, -1)
    return padded.flatten(2).gather(2, places).view(count, channels, height, width)


def normalize(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return ``(images / 255 - mean) / std`` for uint8 images, ``(images - mean) / std`` for floating point ones.

    Args:
        images: (B, C, H, W), uint8 or floating point.
        mean: of each channel, in units of the full range.
        std: of each channel, in the same units.

    Returns:
        (B, C, H, W) float32.
    """
    scale, shift = _constants(tuple(mean), tuple(std), images.dtype == torch.uint8, images.device)
    return images.to(torch.float32, copy=True).mul_(scale).sub_(shift)


@functools.lru_cache(maxsize=64)
def _constants(
    mean: tuple[float, ...], std: tuple[float, ...], byte: bool, device: torch.device
) -> tuple[Tensor, Tensor]:
    with torch.inference_mode(False):  # the first batch may be a validation batch; the tensors outlive it
        spread = torch.tensor(std, dtype=torch.float64).view(-1, 1, 1)
        shift = torch.tensor(mean, dtype=torch.float64).view(-1, 1, 1) / spread
        scale = 1 / (spread * (255 if byte else 1))
        return scale.float().to(device), shift.float().to(device)
