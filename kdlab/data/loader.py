"""Stateful DataLoader that resumes mid-epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from kdlab.compat import stop_workers
from kdlab.data.samplers import Shuffled
from kdlab.errors import InputError
from kdlab.outputs import Batch


class Loader(DataLoader[Batch]):
    """A ``DataLoader`` over a :class:`Shuffled` sampler whose position in the epoch is part of the checkpoint.

    Lightning saves and loads the state. ``len`` is that of the full epoch, also after resuming. Build it with
    :func:`loader`.
    """

    true_epoch: Callable[[int], int] | None = None  # corrects the sampler's epoch
    _place: dict[str, int] | None = None  # the consumer's position
    _resume: dict[str, int] | None = None  # a loaded position that no pass has used yet

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        # A generator, so nothing is read before the first next(): Lightning sets the epoch after iter().
        order = self.sampler
        assert isinstance(order, Shuffled)
        if self.true_epoch is not None:
            order.set_epoch(self.true_epoch(order.epoch))
        resume, self._resume = self._resume, None
        done = resume["batches"] if resume is not None and resume["epoch"] == order.epoch else 0
        place = self._place = {"epoch": order.epoch, "batches": done}
        order.start = done
        batches = super().__iter__()
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except Exception as error:
                if self.num_workers:  # the garbage collector would wait 5 seconds per worker
                    stop_workers(batches)
                    self._iterator = None
                if isinstance(error, InputError):  # an error of a worker contains its traceback
                    raise InputError(str(error).strip().rpartition(f"{type(error).__name__}: ")[2]) from error
                raise
            place["batches"] += 1  # counts the consumer's batches, not the workers'
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Return the epoch and the number of its batches consumed; a finished epoch is the start of the next one."""
        place = self._resume or self._place or {"epoch": self.sampler.epoch, "batches": 0}  # type: ignore[attr-defined]
        if place["batches"] >= len(self):
            return {"epoch": place["epoch"] + 1, "batches": 0}
        return dict(place)

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Resume at a position of :meth:`state_dict`: the next pass over that epoch yields its remaining batches."""
        self._resume = {"epoch": int(state["epoch"]), "batches": int(state["batches"])}
        self.sampler.set_epoch(self._resume["epoch"])  # type: ignore[attr-defined]


def loader(dataset: Dataset[Batch], order: Shuffled, num_workers: int = 0) -> Loader:
    """Return a loader of the batches of ``order``; ``dataset[draw]`` is a full :class:`kdlab.outputs.Batch`."""
    return Loader(
        dataset,
        batch_size=None,
        sampler=order,
        num_workers=num_workers,
        collate_fn=_unchanged,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=num_workers > 0,
        generator=torch.Generator(),  # otherwise each pass draws its workers' seed from the global one
    )


def _unchanged(batch: Any) -> Any:
    return batch
