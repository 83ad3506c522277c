"""Views of images beside those of the batch: other augmentations, images of the same class, the batch before."""

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
    """Which samples are of which class.

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
        """For every sample one of its class, perhaps itself; (B,) int64, a function of (seed, epoch, index)."""
        samples, sizes, starts = self._sorted
        own = self.labels[index]
        return samples[starts[own] + counter_rng.integers(sizes[own], seed, epoch, index, counter_rng.COMPANION)]


class Companions(View):
    """A view of images that the data set reads for it, under augmentations that no epoch shows as its own.

    Attributes:
        numbers: the augmentation of each of a sample's V images; see :func:`kdlab.data.counter_rng.shown`.
    """

    of_the_sample = False
    numbers: tuple[int, ...] = (1,)

    def positions(self, draw: Draw, classes: Classes, seed: int, epoch: int) -> list[Tensor]:
        """Which samples of the data set: V times (b,) int64."""
        raise NotImplementedError(f"{type(self).__name__} must define positions().")

    def show(
        self, batch: Batch, raw: Batch | None, augment: Callable[[Tensor, Tensor, int], Tensor], seed: int, epoch: int
    ) -> Batch:
        """The images augmented, with their labels and index, the V of one sample side by side."""
        if raw is None or raw.index is None:
            raise InputError(
                f"The batch did not bring the images that {type(self).__name__} shows: have the loader made by "
                "train_dataloader() after the view is asked for."
            )
        if not len(raw.index):
            return raw
        apart = len(self.numbers)
        shown = [
            augment(raw.inputs[k::apart], raw.index[k::apart], counter_rng.shown(epoch, None, number))
            for k, number in enumerate(self.numbers)
        ]
        return raw._replace(inputs=_side_by_side(shown))


class SecondView(Companions):
    """The samples of the batch under another augmentation: DDGSD, KDCL, PCL.

    Args:
        number: which; views of the same number are the same, 1 or more.

    Raises:
        InputError: the number is below 1.
    """

    of_the_sample = True

    def __init__(self, number: int = 1) -> None:
        if number < 1:
            raise InputError(f"A second view has a number from 1 on, not {number}.")
        self.numbers = (number,)

    def positions(self, draw: Draw, classes: Classes, seed: int, epoch: int) -> list[Tensor]:
        """Those of the batch."""
        return [draw.positions]


class SameClass(Companions):
    """Further samples of the class of each sample of the batch, under another augmentation: CS-KD, BAKE.

    Drawn with replacement, as a function of (seed, epoch, index); it may be the sample itself, as in CS-KD's released
    code. Which they are repeats with the augmentation.

    Args:
        count: how many for each sample.

    Raises:
        InputError: the count is below 1.
    """

    def __init__(self, count: int = 1) -> None:
        if count < 1:
            raise InputError(f"SameClass gives at least 1 further sample for each, not {count}.")
        self.numbers = tuple(range(1, count + 1))

    def positions(self, draw: Draw, classes: Classes, seed: int, epoch: int) -> list[Tensor]:
        """As many of the same class for each."""
        return [classes.mates(draw.positions, seed, counter_rng.shown(epoch, None, number)) for number in self.numbers]


class LastBatch(Companions):
    """The samples that this process had in the batch before, under another augmentation: DLB.

    The first batch of an epoch comes after the last one of the epoch before; before the very first there is none, and
    the view has 0 rows.
    """

    def positions(self, draw: Draw, classes: Classes, seed: int, epoch: int) -> list[Tensor]:
        """Those of the batch before."""
        assert draw.previous is not None
        return [draw.previous]


class WithCompanions(Dataset[Batch]):
    """A training set whose batches bring along, as raw views, the further images that their views show.

    They are read where the batch is, so in workers if there are any.

    Args:
        source: ``source[draw]`` is a batch; has ``labels``.
        views: the views, by name.
        seed: of the augmentation.
        distinct_epochs: after how many epochs the augmentation repeats; ``None`` for never.
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
        brought: dict[str, Tensor | Batch] = dict(zip(twins, others, strict=True))
        for name, view in self.views.items():
            if name not in twins:
                brought[name] = self._companions(view, draw, batch)
        return batch._replace(views=brought)

    def _companions(self, view: Companions, draw: Draw, batch: Batch) -> Batch:
        epoch = counter_rng.shown(draw.epoch, self.distinct_epochs)
        places = view.positions(draw, self._classes, self.seed, epoch)
        if not len(places[0]):
            return Batch(batch.inputs[:0], batch.target[:0], places[0])
        parts: list[Batch] = [
            self.source[Draw(each, draw.epoch, number)] for each, number in zip(places, view.numbers, strict=True)
        ]
        target = _side_by_side([part.target for part in parts])
        return Batch(_side_by_side([part.inputs for part in parts]), target, _side_by_side(places))


def with_companions(
    source: Dataset[Batch], views: Mapping[str, View], streams: bool, seed: int, distinct_epochs: int | None
) -> Dataset[Batch]:
    """The training set, made to bring along what ``views`` show of other images, if they do.

    Args:
        source: the training set.
        views: all views, by name.
        streams: whether ``source`` augments what it reads. If not, second views are made from the batch.
        seed: of the augmentation.
        distinct_epochs: after how many epochs the augmentation repeats; ``None`` for never.
    """
    needed = {
        name: view
        for name, view in views.items()
        if isinstance(view, Companions) and (streams or not isinstance(view, SecondView))
    }
    return WithCompanions(source, needed, seed, distinct_epochs) if needed else source


def _side_by_side(parts: Sequence[Tensor]) -> Tensor:
    """V tensors (b, ...) as one, (b * V, ...), the V of one sample together."""
    return parts[0] if len(parts) == 1 else torch.stack([*parts], 1).flatten(0, 1)
