"""MNIST, read from its IDX files."""

from __future__ import annotations

import gzip
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdlab.data.images import ImageData
from kdlab.errors import InputError


class MNIST(ImageData):
    """MNIST: 60,000 training and 10,000 test images of handwritten digits, (1, 28, 28), 10 classes.

    Y. LeCun, L. Bottou, Y. Bengio, P. Haffner: Gradient-based learning applied to document recognition, Proceedings of
    the IEEE, 1998.

    Args:
        root: folder with ``MNIST/raw``, which has the four IDX files, gzipped (``.gz``) or not.
        download: download missing files to ``root``.
        options: further arguments of :class:`ImageData`.

    Raises:
        InputError: in ``setup``: a file is missing or damaged.
    """

    num_classes = 10
    shape = (1, 28, 28)

    def __init__(self, root: str = "data", download: bool = False, **options: Any) -> None:
        super().__init__(mean=[0.1307], std=[0.3081], **options)
        self.root = root
        self.download = download

    def prepare_data(self) -> None:
        """Download missing files if ``download`` is set; Lightning calls it in one process."""
        paths = [self._path(kind, train) for kind in ("images-idx3", "labels-idx1") for train in (True, False)]
        if self.download and not all(path.is_file() or _gzipped(path).is_file() for path in paths):
            from torchvision import datasets

            datasets.MNIST(self.root, download=True)

    def read(self, train: bool) -> tuple[Tensor, Tensor]:
        """Return the images, (N, 1, 28, 28) uint8, and labels, (N,) int64, of the training or the test set."""
        images = read_idx(self._path("images-idx3", train))
        labels = read_idx(self._path("labels-idx1", train))
        if images.shape[1:] != self.shape[1:] or labels.shape != images.shape[:1]:
            kind = "training" if train else "test"
            sizes = f"{tuple(images.shape)} and {tuple(labels.shape)}"
            raise InputError(
                f"The {kind} images and labels of MNIST in {self.root!r} have shapes {sizes}: not MNIST's."
            )
        return images[:, None], labels.long()

    def _path(self, kind: str, train: bool) -> Path:
        return Path(self.root) / "MNIST" / "raw" / f"{'train' if train else 't10k'}-{kind}-ubyte"


def read_idx(path: Path) -> Tensor:
    """Return the uint8 tensor in an IDX file, or in the gzipped file beside it.

    Raises:
        InputError: there is neither file, or the content is not an IDX file of unsigned bytes.
    """
    gzipped = _gzipped(path)
    if path.is_file():
        raw = path.read_bytes()
    elif gzipped.is_file():
        try:
            raw = gzip.decompress(gzipped.read_bytes())
        except (OSError, EOFError) as error:
            raise InputError(
                f"{gzipped} is damaged ({error}); delete it and pass download=true to fetch it."
            ) from error
    else:
        raise InputError(f"{path} is missing; pass download=true to fetch it, or root=... to look elsewhere.")
    dimensions = raw[3] if raw[:3] == b"\x00\x00\x08" and len(raw) > 3 else 0
    start = 4 + 4 * dimensions
    shape = [int.from_bytes(raw[at : at + 4], "big") for at in range(4, start, 4)]
    if not dimensions or len(raw) - start != math.prod(shape):
        raise InputError(f"{path} is damaged: it is not an IDX file of unsigned bytes, or it is truncated.")
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8, offset=start).view(shape)


def _gzipped(path: Path) -> Path:
    return path.with_name(path.name + ".gz")
