"""CIFAR-10 and CIFAR-100, from the original Python files or from class folders of images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdlab.data.decoding import decoded
from kdlab.data.image_tree import Tree, splits
from kdlab.data.images import ImageData
from kdlab.errors import InputError


class CIFAR10(ImageData):
    """CIFAR-10: 50,000 training and 10,000 test images, (3, 32, 32), 10 classes; by default padded by 4 and flipped.

    A. Krizhevsky: Learning multiple layers of features from tiny images, 2009.

    Args:
        root: folder with ``cifar-10-batches-py``; or, as in other distributions, with ``train`` and ``test``, each a
            directory or a zip file (``train.zip``) of class folders of images, whose classes are in alphabetical order,
            as in the original. The pixels are the same but the order of the samples is not: the same seed draws other
            batches.
        download: download missing files to ``root``.
        padding: pixels of zeros around an image before the random crop.
        flip: flip half of the training images horizontally.
        cache: folder in which images of class folders stay decoded for later runs; ``None`` to decode them each time.
        options: further arguments of :class:`ImageData`.

    Raises:
        InputError: in ``setup``: the files are missing or damaged.
    """

    num_classes = 10
    shape = (3, 32, 32)
    statistics = ([0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616])

    def __init__(
        self,
        root: str = "data",
        download: bool = False,
        padding: int = 4,
        flip: bool = True,
        cache: str | None = "runs/decoded",
        **options: Any,
    ) -> None:
        mean, std = self.statistics
        super().__init__(mean=mean, std=std, padding=padding, flip=flip, **options)
        self.root = root
        self.download = download
        self.cache = cache
        self.classes: list[str] = []
        self._names: dict[str, list[str]] = {}

    def prepare_data(self) -> None:
        """Download missing files if ``download`` is set; Lightning calls it in one process."""
        if self.download:
            self._dataset()(self.root, download=True)

    def read(self, train: bool) -> tuple[Tensor, Tensor]:
        """Return the images, (N, 3, 32, 32) uint8, and labels, (N,) int64, of the training or the test set."""
        if (trees := self._class_folders()) is not None:
            tree = trees["train" if train else "test"]
            self.classes = tree.classes
            self._names |= {} if train else {"test": tree.names}
            return decoded(tree, (32, 32), self.cache), tree.labels
        try:
            raw = self._dataset()(self.root, train=train)
        except RuntimeError as error:  # torchvision raises it for both
            name = type(self).__name__
            remedy = "pass download=true to fetch it, or root=... to look elsewhere"
            raise InputError(f"{name} is missing or damaged in {self.root!r}; {remedy}.") from error
        self.classes = list(raw.classes)
        return torch.from_numpy(raw.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(raw.targets)

    def file_names(self, split: str) -> list[str]:
        """Return the files of the test images where they are in class folders; see :meth:`ImageData.file_names`."""
        return self._names.get(split, [])

    def _class_folders(self) -> dict[str, Tree] | None:
        """Return the splits of class folders; ``None`` if ``root`` has the original files or no class folders."""
        root = Path(self.root).expanduser()
        if (root / self._dataset().base_folder).exists() or not any(root.glob("train*")):
            return None
        trees = splits(root, "number")  # folders that are numbers are the original labels
        if "test" not in trees:
            raise InputError(
                f"{self.root!r} has class folders for training but none for the test: add test or test.zip."
            )
        return trees

    def _dataset(self) -> Any:
        from torchvision import datasets

        return datasets.CIFAR10


class CIFAR100(CIFAR10):
    """CIFAR-100: 50,000 training and 10,000 test images, (3, 32, 32), 100 classes; by default padded by 4 and flipped.

    The folder in ``root`` is ``cifar-100-python``; everything else is as in :class:`CIFAR10`.
    """

    num_classes = 100
    statistics = ([0.5071, 0.4867, 0.4408], [0.2675, 0.2565, 0.2761])

    def _dataset(self) -> Any:
        from torchvision import datasets

        return datasets.CIFAR100
