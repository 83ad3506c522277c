"""Samplers of batches that are a function of (seed, epoch), whatever the number of processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DistributedSampler, SequentialSampler

from kdlab.data import counter_rng
from kdlab.errors import InputError


class Draw(NamedTuple):
    """One process's part of one batch: the key for a data set.

    Attributes:
        positions: (b,) int64, which samples of the data set.
        epoch: the epoch number, for augmentation in workers.
        number: number of the augmentation in that epoch, see :func:`kdlab.data.counter_rng.shown`.
        previous: (p,) int64, this process's part of the previous batch, if a view needs it.
    """

    positions: Tensor
    epoch: int
    number: int = 0
    previous: Tensor | None = None


class Shuffled(DistributedSampler[Draw]):
    """Batches for training: a new order each epoch, and each process has a slice of each batch.

    Two processes together see the same batches as one. The last batch may be smaller; it is cut to a multiple of the
    number of processes, so that all have equally many samples. A ``DistributedSampler``, so that Lightning does not
    replace it.

    Args:
        size: number of samples in the data set.
        batch_size: samples in a batch over all processes together.
        seed: of the order.
        rank: index of this process, 0 to ``world_size`` - 1.
        world_size: number of processes.
        drop_last: leave out a last batch that is smaller.

    Raises:
        InputError: ``batch_size`` is below 1 or not divisible by ``world_size``, or samples are fewer than processes.
    """

    def __init__(
        self, size: int, batch_size: int, seed: int = 0, rank: int = 0, world_size: int = 1, drop_last: bool = False
    ) -> None:
        super().__init__(range(size), num_replicas=world_size, rank=rank, shuffle=True, seed=seed)  # type: ignore[arg-type]
        if batch_size < 1 or batch_size % world_size:
            raise InputError(
                f"The batch size {batch_size} must be a positive multiple of the {world_size} processes.",
                key="data.batch_size",
            )
        if size < world_size:
            raise InputError(f"{size} samples are too few for {world_size} processes.")
        self.size = size
        self.batch_size = batch_size
        self.drop_last = drop_last
        self.start = 0  # the next pass skips this many batches
        self.remembers = False  # whether draws have the previous batch
        self.ran: Callable[[], float] | None = None  # number of batches run per epoch, if not all

    def bounds(self) -> list[tuple[int, int]]:
        """Return the first position and the end of every batch over all processes."""
        rest = self.size % self.batch_size
        usable = self.size - (rest if self.drop_last else rest % self.num_replicas)
        return [(first, min(first + self.batch_size, usable)) for first in range(0, usable, self.batch_size)]

    def order(self, epoch: int) -> Tensor:
        """Return all positions in the order of an epoch, (size,) int64."""
        return torch.argsort(
            counter_rng.bits(self.seed, epoch, torch.arange(self.size), counter_rng.ORDER), stable=True
        )

    def __iter__(self) -> Iterator[Draw]:
        start, self.start = self.start, 0
        order = self.order(self.epoch)
        previous = self._previous(order, start) if self.remembers else None
        for bounds in self.bounds()[start:]:
            positions = self._part(order, bounds)
            yield Draw(positions, self.epoch, previous=previous)
            previous = positions if self.remembers else None

    def _part(self, order: Tensor, bounds: tuple[int, int]) -> Tensor:
        """Return this process's part of a batch."""
        return order[slice(*bounds)].tensor_split(self.num_replicas)[self.rank].clone()

    def _previous(self, order: Tensor, start: int) -> Tensor:
        """Return this process's part of the batch before batch ``start``, which may be the last of the epoch before."""
        bounds = self.bounds()
        if start:
            return self._part(order, bounds[start - 1])
        if not self.epoch:
            return order[:0].clone()
        count = len(bounds) if self.ran is None else int(min(len(bounds), self.ran()))
        return self._part(self.order(self.epoch - 1), bounds[max(count, 1) - 1])

    def __len__(self) -> int:
        return len(self.bounds())


class InOrder(Shuffled, SequentialSampler):  # type: ignore[misc]
    """Batches for evaluation: every sample exactly once over all processes, in the order of the data set.

    Nothing is repeated or left out. A last batch with fewer samples than processes is merged into the batch before it,
    so that all processes run equally many batches.
    """

    def bounds(self) -> list[tuple[int, int]]:
        """Return the first position and the end of every batch over all processes."""
        firsts = list(range(0, self.size, self.batch_size))
        if self.size - firsts[-1] < self.num_replicas and len(firsts) > 1:
            firsts.pop()
        return list(zip(firsts, [*firsts[1:], self.size], strict=True))

    def order(self, epoch: int) -> Tensor:
        """Return all positions, (size,) int64."""
        return torch.arange(self.size)


LARGEST = 2**31 - 1
"""The largest batch size; one above the size of the data set takes the whole set in each step."""


def check_batch_size(name: str, value: int) -> int:
    """Return a batch size.

    Raises:
        InputError: it is no whole number from 1 to :data:`LARGEST`.
    """
    if not isinstance(value, int) or not 1 <= value <= LARGEST:
        text = f"{name} must be a whole number of at least 1, not {value} (at most {LARGEST})."
        raise InputError(text, key=f"data.{name}")
    return value
