"""The data path: kdlab's images in memory against torchvision's pipeline of PIL images, on the same pictures."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

import numpy as np
from inputs import RandomImages, Setting, random_images
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

KDLAB, PIL = "kdlab, images in memory", "torchvision, PIL images"
BATCH = 128


class Pictures(Dataset[tuple[Any, int]]):
    """The same images one by one, as ``torchvision.datasets.CIFAR100`` serves them."""

    def __init__(self, count: int, transform: Callable[[Any], Any]) -> None:
        images, labels = random_images(count, seed=3)
        self.images: Any = np.ascontiguousarray(images.permute(0, 2, 3, 1).numpy())
        self.labels, self.transform = labels.tolist(), transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, number: int) -> tuple[Any, int]:
        return self.transform(Image.fromarray(self.images[number])), self.labels[number]


def torchvision_loader(count: int, mean: list[float], std: list[float]) -> Iterable[Any]:
    """The pipeline that most code bases have."""
    steps = [transforms.RandomCrop(32, 4), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
    pictures = Pictures(count, transforms.Compose([*steps, transforms.Normalize(mean, std)]))
    return DataLoader(pictures, batch_size=BATCH, shuffle=True, num_workers=0, drop_last=True)


def measure(setting: Setting, ours: int, theirs: int) -> dict[str, list[float]]:
    """Images a second of every turn, by pipeline, over so many batches; they alternate."""
    data = RandomImages(batch_size=BATCH)
    data.setup()
    pictures = torchvision_loader(theirs * BATCH, data.mean, data.std)

    def kdlab_pass(epoch: int) -> int:
        loader = data.train_dataloader()
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        return sum(len(data.prepare(batch, epoch).inputs) for batch in islice(loader, ours))

    def torchvision_pass(epoch: int) -> int:
        return sum(len(images) for images, _ in pictures)

    now = time.process_time if setting.processor_time else time.perf_counter
    passes = {KDLAB: kdlab_pass, PIL: torchvision_pass}
    found: dict[str, list[float]] = {name: [] for name in passes}
    for number in range(setting.rounds):
        for name in list(passes)[:: -1 if number % 2 else 1]:
            begin = now()
            images = passes[name](number)
            found[name].append(images / (now() - begin))
    return found
