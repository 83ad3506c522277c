"""What every contestant of the benchmark is given: networks, batches, and the clock that times its steps."""

from __future__ import annotations

import copy
import os
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdlab.data.images import ImageData
from kdlab.data.loader import Loader
from kdlab.models import resnet20, resnet56
from kdlab.outputs import Batch

TEACHER = Path(os.environ.get("KDLAB_DATA", "")) / "teachers_cifar10" / "resnet56-4bfd9763.th"
"""A published ResNet-56, trained on CIFAR-10 (Y. Idelbayev's), which teaches where it is."""
SAMPLES, CLASSES = 50_000, 10 if TEACHER.is_file() else 100
WARM = 2
"""Steps at the start of every fit that are not timed: they size adapters, copy the teacher, fill the cache."""


@dataclass(frozen=True)
class Setting:
    """What holds for the whole run.

    Attributes:
        device: where the networks are.
        rounds: how often each contestant has its turn.
        steps: timed steps in a turn.
        processor_time: time by the processor's time of this process instead of the time that passes.
        batch: samples in a batch.
    """

    device: torch.device
    rounds: int
    steps: int
    processor_time: bool = False
    batch: int = 64


class Clock:
    """Notes when each batch is asked for: from one ask to the next is a whole step, with all that surrounds it.

    On CUDA the device is waited for before the first timed step and after the last, never between.
    """

    def __init__(self, setting: Setting) -> None:
        self.device = setting.device
        self.now = time.process_time if setting.processor_time else time.perf_counter
        self.steps = 0
        self.asks: list[float] = []

    def start(self) -> None:
        """Forget the asks of an earlier pass."""
        self.asks = []

    def ask(self) -> None:
        """Note the time."""
        if self.device.type == "cuda" and len(self.asks) in (WARM, WARM + self.steps):
            torch.cuda.synchronize()
        self.asks.append(self.now())

    @property
    def _timed(self) -> list[float]:
        timed = self.asks[WARM : WARM + self.steps + 1]
        assert len(timed) == self.steps + 1, f"{len(self.asks)} asks for {self.steps} timed steps"
        return timed

    def mean(self) -> float:
        """Seconds a step, over the whole block: what is done every N steps is in it."""
        return (self._timed[-1] - self._timed[0]) / self.steps

    def typical(self) -> float:
        """Seconds of the median step; on CUDA, where steps overlap, the mean."""
        timed = self._timed
        if self.device.type == "cuda":
            return self.mean()
        return statistics.median(after - before for before, after in pairwise(timed))


class Asked:
    """A loader that tells the clock of every ask, and is otherwise the loader."""

    def __init__(self, loader: Any, clock: Clock) -> None:
        self.loader, self.clock = loader, clock

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        self.clock.start()
        batches = iter(self.loader)
        while True:
            self.clock.ask()
            try:
                batch = next(batches)
            except StopIteration:
                return
            yield batch


class RandomImages(ImageData):
    """50,000 random images of CIFAR-100's form, held, ordered, padded by 4, cropped, mirrored and normalised as it."""

    num_classes, shape = CLASSES, (3, 32, 32)

    def __init__(self, clock: Clock | None = None, **options: Any) -> None:
        statistics_of_cifar100: dict[str, Any] = {"mean": [0.5071, 0.4867, 0.4408], "std": [0.2675, 0.2565, 0.2761]}
        super().__init__(**statistics_of_cifar100, padding=4, flip=True, eval_batch_size=64, **options)
        self.clock = clock

    def read(self, train: bool) -> tuple[Tensor, Tensor]:
        """Images and labels, the same at every call."""
        return random_images(SAMPLES if train else 64, seed=int(train))

    def train_dataloader(self) -> Loader:
        """The training batches, each ask noted."""
        batches = super().train_dataloader()
        return batches if self.clock is None else Asked(batches, self.clock)  # type: ignore[return-value]

    def fingerprint(self) -> dict[str, Any]:
        """That of :class:`ImageData`: noting the time changes no batch."""
        return super().fingerprint()


@lru_cache
def random_images(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images (count, 3, 32, 32) uint8 and labels (count,) int64, equally many of each class."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)
    return images, torch.randperm(count, generator=generator) % CLASSES


def networks() -> tuple[nn.Module, nn.Module]:
    """Copies of one resnet20 as the student and one resnet56 as the teacher."""
    return copy.deepcopy(_networks())


@lru_cache
def _networks() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    student = resnet20(CLASSES)
    if TEACHER.is_file():
        return student, resnet56(CLASSES, weights=str(TEACHER), shortcut="pad").eval().requires_grad_(False)
    return student, with_statistics(resnet56(CLASSES)).eval().requires_grad_(False)


def with_statistics(network: nn.Module) -> nn.Module:
    """The network with the BatchNorm statistics of some images: with the initial ones activations would explode."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # the mean over all batches
    images, labels = random_images(256, seed=4)
    with torch.no_grad():
        network(RandomImages().prepare(Batch(images, labels)).inputs)
    for norm in norms:
        norm.momentum = 0.1
    return network


def fixed_batches(setting: Setting, count: int = 4) -> list[tuple[Tensor, Tensor]]:
    """Batches of the same images, normalised and on the device already: the hand-written loops pay for no data."""
    data = RandomImages(batch_size=setting.batch)
    images, labels = random_images(count * setting.batch, seed=2)
    pairs = zip(images.chunk(count), labels.chunk(count), strict=True)
    ready = (data.prepare(Batch(*pair)) for pair in pairs)
    return [(each.inputs.to(setting.device), each.target.to(setting.device)) for each in ready]


class Untouched:
    """Whether a teacher is still in eval mode, with every parameter and buffer as it was, bit for bit."""

    def __init__(self, teacher: nn.Module) -> None:
        self.teacher = teacher
        self.before = {name: value.detach().cpu().clone() for name, value in teacher.state_dict().items()}

    def complaints(self) -> list[str]:
        """What is not; empty if all is well."""
        training = [name or "the network" for name, module in self.teacher.named_modules() if module.training]
        after = {name: value.cpu() for name, value in self.teacher.state_dict().items()}
        changed = [name for name, value in self.before.items() if not same_bits(value, after.get(name))]
        found = [f"{len(training)} modules in train mode ({training[0]}, ...)"] if training else []
        found += [f"{len(changed)} tensors changed ({changed[0]}, ...)"] if changed else []
        return found + ([f"its tensors are now {sorted(after)[:3]}, ..."] if after.keys() != self.before.keys() else [])


def same_bits(one: Tensor, other: Tensor | None) -> bool:
    """Whether two tensors hold the same bytes."""
    if other is None or one.dtype != other.dtype or one.shape != other.shape:
        return False
    flat = [each.contiguous().flatten().view(torch.uint8) if each.dim() else each for each in (one, other)]
    return torch.equal(*flat)
