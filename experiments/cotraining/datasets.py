"""The three data sets of the comparison, and what each is trained with."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdlab.data import CIFAR100, MNIST, Digits, ImageData
from kdlab.data.decoding import decode
from kdlab.data.image_tree import splits
from kdlab.models import resnet8

CLASSES = 20


class TwentyClasses(ImageData):
    """The first 20 classes of CIFAR-100, from ``train.zip`` and ``test.zip`` of class folders.

    Args:
        root: the folder with the two files.
        options: the other arguments of :class:`kdlab.data.ImageData`.
    """

    num_classes = CLASSES
    shape = (3, 32, 32)

    def __init__(self, root: str, **options: Any) -> None:
        mean, std = CIFAR100.statistics
        super().__init__(mean=mean, std=std, padding=4, flip=True, **options)
        self.root = root

    def read(self, train: bool) -> tuple[Tensor, Tensor]:
        """The images of these classes, and their labels."""
        images, labels = _decoded(self.root, "train" if train else "test")
        kept = labels < CLASSES
        return images[kept], labels[kept]


@functools.lru_cache(maxsize=2)
def _decoded(root: str, split: str) -> tuple[Tensor, Tensor]:
    tree = splits(Path(root))[split]
    return decode(tree, (32, 32)), tree.labels


@dataclass(frozen=True)
class Bench:
    """One data set with its network, its schedule and its optimiser."""

    data: Callable[..., ImageData]
    network: Callable[[], nn.Module]
    classes: int
    image: tuple[int, int, int]
    epochs: int
    rate: float


def benches(root: Path) -> dict[str, Bench]:
    """The data sets by name; ``root`` holds MNIST's and CIFAR-100's files."""
    return {
        "digits": Bench(
            functools.partial(Digits, train_size=300, padding=1, batch_size=50, eval_batch_size=512),
            functools.partial(resnet8, 10, in_channels=1),
            10,
            (1, 8, 8),
            30,
            0.1,
        ),
        "mnist": Bench(
            functools.partial(MNIST, str(root / "mnist"), train_size=1000, padding=2, batch_size=50),
            functools.partial(resnet8, 10, in_channels=1),
            10,
            (1, 28, 28),
            6,
            0.1,
        ),
        "cifar100": Bench(
            functools.partial(TwentyClasses, str(root / "cifar100"), train_size=3000, batch_size=64),
            functools.partial(resnet8, CLASSES),
            CLASSES,
            (3, 32, 32),
            5,
            0.1,
        ),
    }


def sgd(parameters: Any, rate: float = 0.1) -> torch.optim.Optimizer:
    """SGD with momentum, the only optimiser here."""
    return torch.optim.SGD(parameters, lr=rate, momentum=0.9, weight_decay=5e-4, nesterov=True)
