"""Further views of training images for the networks: rotated, strongly augmented, mixed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from kdlab.data import counter_rng
from kdlab.data.mixing import Mixing, MixUp
from kdlab.errors import InputError
from kdlab.outputs.containers import Batch


class View:
    """A further version of augmented training images, as a function of (seed, epoch, index)."""

    of_the_sample: ClassVar[bool] = True
    """Whether a sample's view shows only that sample, so that a teacher's output on it can be cached."""

    def show(
        self, batch: Batch, raw: Batch | None, augment: Callable[[Tensor, Tensor, int], Tensor], seed: int, epoch: int
    ) -> Tensor | Batch:
        """Return the view of a batch, as inputs or as a batch with other labels.

        Args:
            batch: images (B, C, H, W), augmented but not normalized, with labels and index.
            raw: the images that the data set read for this view, if it shows others than ``batch``.
            augment: the batch's augmentation, of (images, index, epoch).
            seed: seed of the augmentation.
            epoch: the epoch number.
        """
        assert batch.index is not None
        return self(batch.inputs, batch.index, seed, epoch)

    def __call__(self, images: Tensor, index: Tensor, seed: int, epoch: int) -> Tensor:
        """Return the view, (V * B, C, H, W) of the same dtype, with the V images of a sample in consecutive rows.

        Args:
            images: (B, C, H, W), augmented but not normalized.
            index: (B,) int64, the samples' positions in their data set.
            seed: seed of the augmentation.
            epoch: the epoch number.
        """
        raise NotImplementedError(f"{type(self).__name__} must define __call__().")


class Rotations(View):
    """The image turned by multiples of 90 degrees, counter-clockwise: the pretext task of SSKD.

    Args:
        angles: the turns, in degrees.

    Raises:
        InputError: an angle is not a multiple of 90, or images that are not square get a quarter turn.
    """

    def __init__(self, angles: Sequence[int] = (90, 180, 270)) -> None:
        if not angles or any(angle % 90 for angle in angles):
            raise InputError(f"Rotations turns by multiples of 90 degrees, not {list(angles)}.")
        self.angles = tuple(angles)

    def __call__(self, images: Tensor, index: Tensor, seed: int, epoch: int) -> Tensor:
        """Return all turns of the first image, then all of the second, and so on."""
        if images.shape[2] != images.shape[3] and any(angle % 180 for angle in self.angles):
            raise InputError(f"Images of {images.shape[2]} x {images.shape[3]} pixels change shape by a quarter turn.")
        return torch.stack([torch.rot90(images, angle // 90, (2, 3)) for angle in self.angles], 1).flatten(0, 1)


class RandAugment(View):
    """Each image changed by a few random operations of the set of RandAugment: MLKD's strong view.

    (E. D. Cubuk, B. Zoph, J. Shlens, Q. V. Le, RandAugment: Practical Automated Data Augmentation with a Reduced Search
    Space, 2020, arXiv:1909.13719; torchvision's.) Image by image, about 0.7 ms each for CIFAR on one CPU core.

    Args:
        operations: number of operations per image.
        magnitude: strength of the operations, from 0 to 30.

    Raises:
        InputError: a number is out of range.
    """

    def __init__(self, operations: int = 2, magnitude: int = 10) -> None:
        if operations < 1 or not 0 <= magnitude <= 30:
            raise InputError(
                f"RandAugment takes at least 1 operation and a magnitude from 0 to 30, not {operations}, {magnitude}."
            )
        from torchvision.transforms import v2

        self.transform = v2.RandAugment(operations, magnitude)

    def __call__(self, images: Tensor, index: Tensor, seed: int, epoch: int) -> Tensor:
        """Return one strong view per image."""
        seeds = counter_rng.bits(seed, epoch, index, counter_rng.STRONG).tolist()
        changed = []
        with torch.random.fork_rng(devices=[]):
            for image, own in zip(images, seeds, strict=True):
                torch.manual_seed(own)  # torchvision draws from the global generator
                changed.append(self.transform(image))
        return torch.stack(changed)


class Mixed(View):
    """The mixed images of the batch, with the original labels and the mix: MixSKD's third view.

    Args:
        mixing: the kind of mixture; ``None`` for ``MixUp(0.4)``.
    """

    of_the_sample = False

    def __init__(self, mixing: Mixing | None = None) -> None:
        self.mixing = mixing or MixUp(0.4)

    def show(
        self, batch: Batch, raw: Batch | None, augment: Callable[[Tensor, Tensor, int], Tensor], seed: int, epoch: int
    ) -> Batch:
        """Return one mixed image per image of the batch."""
        assert batch.index is not None
        images, mix = self.mixing(batch.inputs, batch.index, seed, epoch)
        return Batch(images, batch.target, batch.index, mix=mix)
