"""Evaluation in several processes on a user's loaders: every sample counts once."""

from __future__ import annotations

from typing import Any

from torch.utils.data import DistributedSampler

from kdlab.data.samplers import Shuffled
from kdlab.modules.first_batch import first_samples
from kdlab.outputs.containers import Batch


class RepeatedSamples:
    """Drops what a ``DistributedSampler`` repeats at the end, so that all processes have equally many samples.

    Lightning puts one into the loaders that it evaluates. Without repetition processes could have unequal numbers of
    batches, and one would wait for the other where DDP synchronizes buffers.
    """

    def __init__(self) -> None:
        self._rows = 0

    def dropped(self, batch: Batch, loader: Any, batch_idx: int) -> Batch | None:
        """Return the samples of a process's next batch that are no repetition; ``None`` if there are none."""
        sampler: Any = getattr(getattr(loader, "batch_sampler", None) or loader, "sampler", None)
        before = self._rows if batch_idx else 0
        rows = len(batch.target)
        self._rows = before + rows
        if not isinstance(sampler, DistributedSampler) or isinstance(sampler, Shuffled):
            return batch
        size: int = len(sampler.dataset)  # type: ignore[arg-type]
        left = len(range(sampler.rank, size, sampler.num_replicas)) - before
        if left >= rows:
            return batch
        return first_samples(batch, left) if left > 0 else None
