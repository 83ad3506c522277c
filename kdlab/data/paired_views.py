"""Views paired with a batch: other augmentations, images of the same class, the previous batch."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from kdlab.data import counter_rng
from kdlab.data.samplers import Draw
from kdlab.data.views import View
from kdlab.errors import InputError
from kdlab.outputs.containers import Batch


class Classes:
    """The samples of each class.

    Args:
        labels: (N,) int64.
    """

    def __init__(self, labels: Tensor) -> None:
        self.labels = labels

    @functools.cached_property
    def _sorted(self) -> tuple[Tensor, Tensor, Tensor]:
        sizes = self.labels.bincount()
        return self.labels.argsort(stable=True), sizes, sizes.cumsum(0) - sizes

    def mates(self, index: Tensor, seed: int, epoch: int) -> Tensor:
        """Draw a sample of the same class for every sample, perhaps itself; (B,) int64 by (seed, epoch, index)."""
        samples, sizes, starts = self._sorted
        labels = self.labels[index]
        return samples[starts[labels] + counter_rng.integers(sizes[labels], seed, epoch, index, counter_rng.COMPANION)]


class Companions(View):
    """A view of images that the data set reads, under augmentations that no epoch uses for the batch itself.

    Attributes:
        numbers: the augmentation number of each of a sample's V images; see :func:`kdlab.data.counter_rng.shown`.
    """

    of_the_sample = False
    numbers: tuple[int, ...] = (1,)

    def positions(self, draw: Draw, classes: Classes, seed: int, epoch: int) -> list[Tensor]:
        """Return which samples of the data set the view shows: V tensors (b,) int64."""
        raise NotImplementedError(f"{type(self).__name__} must define positions().")

    def show(
        self, batch: Batch, raw: Batch | None, augment: Callable[[Tensor, Tensor, int], Tensor], seed: int, epoch: int
    ) -> Batch:
        """Return the augmented images with labels and index, with the V images of a sample in consecutive rows."""
        if raw is None or raw.index is None:
            raise InputError(
                f"The batch has no images for {type(self).__name__}: make the loader with train_dataloader() after the "
                "view is requested."
            )
        if not len(raw.index):
            return raw
        count = len(self.numbers)
        augmented = [
            augment(raw.inputs[k::count], raw.index[k::count], counter_rng.shown(epoch, None, number))
            for k, number in enumerate(self.numbers)
        ]
        return raw._replace(inputs=_interleave(augmented))


class SecondView(Companions):
    """The samples of the batch under another augmentation: DDGSD, KDCL, PCL.

    Args:
        number: number of the augmentation, 1 or more; views of the same number are equal.

    Raises:
        InputError: the number is below 1.
    """

    of_the_sample = True

    def __init__(self, number: int = 1) -> None:
        if number < 1:
            raise InputError(f"A second view has a number from 1 on, not {number}.")
        self.numbers = (number,)

    def positions(self, draw: Draw, classes: Classes, seed: int, epoch: int) -> list[Tensor]:
        """Return the positions of the batch."""
        return [draw.positions]


class SameClass(Companions):
    """Further samples of the same class as each sample of the batch, under another augmentation: CS-KD, BAKE.

    They are drawn with replacement, as a function of (seed, epoch, index), and may be the sample itself, as in CS-KD's
    released code. The draw repeats with the augmentation.

    Args:
        count: number of further samples per sample.

    Raises:
        InputError: the count is below 1.
    """

    def __init__(self, count: int = 1) -> None:
        if count < 1:
            raise InputError(f"SameClass needs a count of at least 1, not {count}.")
        self.numbers = tuple(range(1, count + 1))

    def positions(self, draw: Draw, classes: Classes, seed: int, epoch: int) -> list[Tensor]:
        """Return ``count`` samples of the same class per sample."""
        return [classes.mates(draw.positions, seed, counter_rng.shown(epoch, None, number)) for number in self.numbers]


class LastBatch(Companions):
    """The samples of this process's previous batch, under another augmentation: DLB.

    The first batch of an epoch follows the last one of the epoch before; the very first batch has none before it, and
    its view has 0 rows.
    """

    def positions(self, draw: Draw, classes: Classes, seed: int, epoch: int) -> list[Tensor]:
        """Return the positions of the previous batch."""
        assert draw.previous is not None
        return [draw.previous]


class WithCompanions(Dataset[Batch]):
    """A training set whose batches contain, as raw views, the further images that their views show.

    They are read with the batch, so in workers if there are any.

    Args:
        source: ``source[draw]`` is a batch; has ``labels``.
        views: the views, by name.
        seed: seed of the augmentation.
        distinct_epochs: number of epochs after which the augmentation repeats; ``None`` for never.
    """

    def __init__(
        self, source: Dataset[Batch], views: Mapping[str, Companions], seed: int, distinct_epochs: int | None
    ) -> None:
        self.source: Any = source
        self.labels: Tensor = getattr(source, "labels")  # noqa: B009
        self.views = dict(views)
        self.seed = seed
        self.distinct_epochs = distinct_epochs
        self._classes = Classes(self.labels)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, draw: Draw) -> Batch:
        twins = {name: view.numbers[0] for name, view in self.views.items() if isinstance(view, SecondView)}
        batch: Batch
        others: list[Batch] = []
        if twins:
            batch, *others = self.source.several(draw, [0, *twins.values()])
        else:
            batch = self.source[draw]
        raw_views: dict[str, Tensor | Batch] = dict(zip(twins, others, strict=True))
        for name, view in self.views.items():
            if name not in twins:
                raw_views[name] = self._companions(view, draw, batch)
        return batch._replace(views=raw_views)

    def _companions(self, view: Companions, draw: Draw, batch: Batch) -> Batch:
        """Read the images of one view."""
        epoch = counter_rng.shown(draw.epoch, self.distinct_epochs)
        positions = view.positions(draw, self._classes, self.seed, epoch)
        if not len(positions[0]):
            return Batch(batch.inputs[:0], batch.target[:0], positions[0])
        parts: list[Batch] = [
            self.source[Draw(part, draw.epoch, number)] for part, number in zip(positions, view.numbers, strict=True)
        ]
        target = _interleave([part.target for part in parts])
        return Batch(_interleave([part.inputs for part in parts]), target, _interleave(positions))


def with_companions(
    source: Dataset[Batch], views: Mapping[str, View], streams: bool, seed: int, distinct_epochs: int | None
) -> Dataset[Batch]:
    """Return the training set, extended by the further images that ``views`` show, if any.

    Args:
        source: the training set.
        views: all views, by name.
        streams: whether ``source`` augments what it reads; if not, second views are computed from the batch.
        seed: seed of the augmentation.
        distinct_epochs: number of epochs after which the augmentation repeats; ``None`` for never.
    """
    needed = {
        name: view
        for name, view in views.items()
        if isinstance(view, Companions) and (streams or not isinstance(view, SecondView))
    }
    return WithCompanions(source, needed, seed, distinct_epochs) if needed else source


def _interleave(parts: Sequence[Tensor]) -> Tensor:
    """Return V tensors (b, ...) as one, (b * V, ...), with the V rows of a sample together."""
    return parts[0] if len(parts) == 1 else torch.stack([*parts], 1).flatten(0, 1)
