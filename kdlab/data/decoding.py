"""Decoding images of class folders: all at once into memory, or batch by batch in DataLoader workers."""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2 import functional as F

from kdlab.data import counter_rng, pixels
from kdlab.data.fingerprint import library, of_code, of_tree
from kdlab.data.image_tree import Tree
from kdlab.data.pixels import DamagedError
from kdlab.data.samplers import Draw
from kdlab.errors import InputError
from kdlab.files import atomic_write, locked
from kdlab.outputs import Batch

SMALL = 1 << 22
"""Bytes of decoded images below which they are not kept on disk: they are decoded in a second."""
AREAS = (0.08, 1.0)  # part of the image that a training crop covers
RATIOS = (3 / 4, 4 / 3)  # its width over its height
TRIES = 10


class SizesDifferError(InputError):
    """The images are not all of one size, so they do not fit one tensor."""


def decode(tree: Tree, size: tuple[int, int]) -> Tensor:
    """Decode all images of a tree, (N, 3, H, W) uint8.

    Args:
        tree: the split.
        size: (H, W) that every image must have.

    Raises:
        InputError: an image has another size, or cannot be decoded.
    """
    images = torch.empty((len(tree), 3, *size), dtype=torch.uint8)
    for position, name in enumerate(tree.names):
        image = tree.image(position)
        if image.shape[1:] != size:
            other, wanted = ("x".join(map(str, each)) for each in (image.shape[1:], size))
            raise SizesDifferError(
                f"The image {name!r} of {tree.path} is {other} pixels where others are {wanted}; pass in_memory=false "
                "to resize images as they are read."
            )
        images[position] = image
    return images


def decoded(tree: Tree, size: tuple[int, int], cache: str | None) -> Tensor:
    """Return all images of a tree as :func:`decode` does, from a file if they were decoded before.

    The file is mapped into memory, so that processes share it. Its name is a hash of names, sizes and modification
    times (in a zip file the checksums) of the images, and of the code that decodes them.

    Args:
        tree: the split.
        size: (H, W) that every image must have.
        cache: folder of such files; ``None`` for none. Where it cannot be written, images are decoded each time.

    Raises:
        InputError: an image has another size, or cannot be decoded.
    """
    if cache is None or 3 * len(tree) * size[0] * size[1] < SMALL:
        return decode(tree, size)
    place = "" if tree.zipped else str(tree.path.resolve())
    about = (of_tree(tree, torch.arange(len(tree))), place, size, of_code(pixels), library("PIL"), torch.__version__)
    path = Path(cache).expanduser() / f"{hashlib.sha256(repr(about).encode()).hexdigest()[:32]}.npy"
    try:
        with locked(path.with_suffix(".lock"), "the images are being decoded", wait=True):
            if not path.exists():
                images = decode(tree, size)
                with contextlib.suppress(InputError), atomic_write(path) as file:
                    np.save(file, images.numpy())
                return images
    except (OSError, NotImplementedError):  # of a file system without locks
        return decode(tree, size)
    try:
        return torch.from_numpy(np.load(path, mmap_mode="c"))
    except (ValueError, EOFError) as error:
        raise InputError(f"{str(path)!r} is damaged ({error}): delete it.") from error


def omit_damaged(tree: Tree) -> None:
    """Decode every image of a tree once, leave out those that cannot be decoded, and name them in a warning.

    The rest is the same in every process and worker, so batches and indices are as if the damaged files did not exist.

    Raises:
        InputError: an image is sound but has no defined 8-bit values, or a class has no sound image.
    """

    def reason(position: int) -> str:
        try:
            tree.image(position)
        except DamagedError as error:
            return str(error)
        return ""

    total = len(tree)
    with ThreadPoolExecutor() as threads:
        damaged = {position: text for position, text in enumerate(threads.map(reason, range(total))) if text}
    if damaged:
        named = " ".join([*damaged.values()][:5])
        rank_zero_warn(f"{tree.path}: {len(damaged)} of {total} images are damaged and left out. {named}")
        tree.omit(damaged)


class Streamed(Dataset[Batch]):
    """Images decoded on access; ``streamed[draw]`` is a full batch, (b, 3, size, size) uint8.

    Args:
        tree: the split.
        rows: (n,) int64, the positions in use; ``None`` for all. A batch's index counts within them.
        size: height and width of the crops, in pixels.
        resize: length of the shorter side before the center crop, in pixels; evaluation only.
        train: random resized crop, and horizontal flip if ``flip``, instead of resize and center crop.
        flip: flip half of the training images horizontally.
        seed: seed of the crops, which are functions of (seed, epoch, index).

    Attributes:
        distinct_epochs: number of epochs after which the crops repeat; ``None`` for never.
    """

    distinct_epochs: int | None = None

    def __init__(
        self, tree: Tree, rows: Tensor | None, size: int, resize: int, train: bool, flip: bool, seed: int
    ) -> None:
        self.tree = tree
        self.rows = torch.arange(len(tree)) if rows is None else rows
        self.labels = tree.labels[self.rows]
        self.size = size
        self.resize = resize
        self.train = train
        self.flip = flip
        self.seed = seed

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, draw: Draw) -> Batch:
        return self.several(draw, [draw.number])[0]

    def content(self) -> str:
        """Return the SHA-256 of names, sizes and modification times of all images, in use or not, hexadecimal."""
        return of_tree(self.tree, torch.arange(len(self.tree)))

    def several(self, draw: Draw, numbers: Sequence[int]) -> list[Batch]:
        """Return the batch under each augmentation of ``numbers``; images are decoded once."""
        decoded = [self.tree.image(row) for row in self.rows[draw.positions].tolist()]
        batches = []
        for number in numbers:
            own = draw._replace(number=number)
            images = self.cropped(decoded, own) if self.train else [self.centred(image) for image in decoded]
            batches.append(Batch(torch.stack(images), self.labels[draw.positions], draw.positions))
        return batches

    def centred(self, image: Tensor) -> Tensor:
        """Resize an image, (3, H, W), and crop its center."""
        shrunk: Tensor = F.resize(image, [self.resize], antialias=True)
        cut: Tensor = F.center_crop(shrunk, [self.size, self.size])
        return cut

    def cropped(self, images: list[Tensor], draw: Draw) -> list[Tensor]:
        """Crop every image at random, resize it, and flip it with probability 1/2 if ``flip``."""
        sizes = torch.tensor([image.shape[1:] for image in images])
        epoch = counter_rng.shown(draw.epoch, self.distinct_epochs, draw.number)
        windows = random_windows(sizes, draw.positions, self.seed, epoch).tolist()
        mirror = counter_rng.integers(2, self.seed, epoch, draw.positions, counter_rng.FLIP).tolist()
        cut = [
            F.resized_crop(image, *window, [self.size, self.size])
            for image, window in zip(images, windows, strict=True)
        ]
        return [image.flip(2) if self.flip and turn else image for image, turn in zip(cut, mirror, strict=True)]


def random_windows(sizes: Tensor, index: Tensor, seed: int, epoch: int) -> Tensor:
    """Draw windows of random area and ratio like torchvision's ``RandomResizedCrop``, for a full batch.

    Area is uniform in 0.08..1 of the image's, the logarithm of width over height uniform between those of 3/4 and 4/3.
    The first of ten tries that fits is used; if none does, the largest centered window with a ratio in that range.

    Args:
        sizes: (B, 2) int64, height and width of every image.
        index: (B,) int64, the samples' positions in their data set.
        seed: seed of the augmentation.
        epoch: the epoch number.

    Returns:
        (B, 4) int64: top, left, height, width.
    """
    tall, wide = sizes.unbind(1)
    low, high = math.log(RATIOS[0]), math.log(RATIOS[1])
    largest_width = torch.minimum(wide, (tall * RATIOS[1]).round().long())
    largest_height = torch.minimum(tall, (wide / RATIOS[0]).round().long())
    height, width = largest_height, largest_width
    top, left = (tall - height) // 2, (wide - width) // 2
    for attempt in reversed(range(TRIES)):  # the first try that fits is written last
        apart = 16 * attempt  # its own streams
        share = AREAS[0] + (AREAS[1] - AREAS[0]) * counter_rng.uniform(seed, epoch, index, counter_rng.AREA + apart)
        ratio = torch.exp(low + (high - low) * counter_rng.uniform(seed, epoch, index, counter_rng.RATIO + apart))
        area = share * tall * wide
        w, h = (area * ratio).sqrt().round().long(), (area / ratio).sqrt().round().long()
        fits = (w > 0) & (w <= wide) & (h > 0) & (h <= tall)
        down = (counter_rng.uniform(seed, epoch, index, counter_rng.TOP + apart) * (tall - h + 1)).long()
        right = (counter_rng.uniform(seed, epoch, index, counter_rng.LEFT + apart) * (wide - w + 1)).long()
        height, width = torch.where(fits, h, height), torch.where(fits, w, width)
        top, left = torch.where(fits, down, top), torch.where(fits, right, left)
    return torch.stack([top, left, height, width], 1)
