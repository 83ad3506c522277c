"""Samples that a DistributedSampler repeats at the end are not evaluated twice."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from kdlab.data.samplers import Shuffled
from kdlab.modules.repeated_samples import RepeatedSamples
from kdlab.outputs import Batch


def evaluated(loader: Any, repeated: RepeatedSamples) -> list[int]:
    """The samples that count, batch by batch."""
    parts = [repeated.dropped(Batch.of(raw), loader, number) for number, raw in enumerate(loader)]
    return [int(x) for part in parts if part is not None for x in part.target]


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("batch_size", [1, 2, 3, 8])
@pytest.mark.parametrize("size", [7, 8, 9, 2])
@pytest.mark.parametrize("processes", [2, 3])
def test_every_sample_counts_in_one_process(processes: int, size: int, batch_size: int, batched: bool) -> None:
    data = TensorDataset(torch.arange(size), torch.arange(size))
    result = []
    for rank in range(processes):
        sampler: Any = DistributedSampler(data, processes, rank, shuffle=False)
        options: dict[str, Any] = {"sampler": sampler, "batch_size": batch_size}
        if batched:
            options = {"batch_sampler": torch.utils.data.BatchSampler(sampler, batch_size, drop_last=False)}
        loader: Any = DataLoader(data, **options)
        repeated = RepeatedSamples()
        result += [first := evaluated(loader, repeated)]
        assert evaluated(loader, repeated) == first  # again, in the next epoch
    assert sorted(itertools.chain(*result)) == [*range(size)]


def test_other_samplers_are_left_alone() -> None:
    data = TensorDataset(torch.arange(4), torch.arange(4))
    assert evaluated(DataLoader(data, batch_size=3), RepeatedSamples()) == [0, 1, 2, 3]
    batch = Batch(torch.arange(5), torch.arange(5))
    loader = DataLoader(data, batch_sampler=Shuffled(4, 2, 0, 1, 2))  # its draws are no repetitions
    assert RepeatedSamples().dropped(batch, loader, 0) is batch
    assert RepeatedSamples().dropped(batch, [1, 2], 0) is batch
