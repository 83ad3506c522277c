"""Batches are the same for any number of processes, and evaluation meets every sample once."""

from __future__ import annotations

from itertools import chain

import pytest
import torch

from kdlab.data.samplers import InOrder, Shuffled
from kdlab.errors import InputError


def batches(kind: type[Shuffled], size: int, batch_size: int, world_size: int, epoch: int = 0) -> list[list[list[int]]]:
    """For each rank, its part of every batch."""
    found = []
    for rank in range(world_size):
        order = kind(size, batch_size, seed=3, rank=rank, world_size=world_size)
        order.set_epoch(epoch)
        parts = [draw.positions.tolist() for draw in order]
        assert len(parts) == len(order)
        found.append(parts)
    return found


def joined(ranks: list[list[list[int]]]) -> list[list[int]]:
    """The batches over all ranks together."""
    return [list(chain(*parts)) for parts in zip(*ranks, strict=True)]


@pytest.mark.parametrize("world_size", [2, 4])
def test_several_processes_see_the_batches_of_one(world_size: int) -> None:
    one = joined(batches(Shuffled, 48, 8, 1))
    assert joined(batches(Shuffled, 48, 8, world_size)) == one
    assert sorted(chain(*one)) == list(range(48))
    assert {len(batch) for batch in one} == {8}


def test_the_last_batch_is_cut_to_a_multiple_of_the_processes() -> None:
    one, two = joined(batches(Shuffled, 21, 8, 1)), batches(Shuffled, 21, 8, 2)
    assert [len(batch) for batch in one] == [8, 8, 5]
    assert joined(two) == [one[0], one[1], one[2][:4]]
    assert [len(part) for part in two[0]] == [len(part) for part in two[1]] == [4, 4, 2]
    assert len(Shuffled(17, 8, rank=0, world_size=2)) == 2  # one sample left is none for two


@pytest.mark.parametrize("world_size", [1, 2])
def test_drop_last_leaves_out_a_smaller_batch_alone(world_size: int) -> None:
    def dropped(size: int) -> list[int]:
        ranks = [Shuffled(size, 8, rank=rank, world_size=world_size, drop_last=True) for rank in range(world_size)]
        return [
            sum(map(len, parts)) for parts in zip(*([draw.positions for draw in rank] for rank in ranks), strict=True)
        ]

    assert dropped(21) == [8, 8]
    assert dropped(24) == [8, 8, 8]


def test_the_order_changes_with_epoch_and_seed_only() -> None:
    first = joined(batches(Shuffled, 50, 8, 1))
    assert first == joined(batches(Shuffled, 50, 8, 1))
    assert first != joined(batches(Shuffled, 50, 8, 1, epoch=1))
    assert first != [draw.positions.tolist() for draw in Shuffled(50, 8, seed=4)]
    torch.manual_seed(0)
    assert first == joined(batches(Shuffled, 50, 8, 1))


def test_an_epoch_is_a_fair_shuffle() -> None:
    order = Shuffled(10, 10)
    places = torch.zeros(10, 10)
    for epoch in range(1000):
        order.set_epoch(epoch)
        for place, sample in enumerate(next(iter(order)).positions.tolist()):
            places[place, sample] += 1
    assert (places - 100).abs().max() < 50  # five standard deviations


@pytest.mark.parametrize("size", [2, 3, 20, 21, 22, 23, 24])
@pytest.mark.parametrize("world_size", [1, 2])
def test_evaluation_has_every_sample_once_in_equal_batch_counts(size: int, world_size: int) -> None:
    ranks = batches(InOrder, size, 4, world_size, epoch=9)
    assert list(chain(*joined(ranks))) == list(range(size))
    assert len({len(parts) for parts in ranks}) == 1
    assert all(part for parts in ranks for part in parts)


def test_21_samples_over_two_ranks() -> None:
    assert joined(batches(InOrder, 21, 4, 1))[-2:] == [[16, 17, 18, 19], [20]]
    assert batches(InOrder, 21, 4, 2)[0][-1] == [16, 17, 18]
    assert batches(InOrder, 21, 4, 2)[1][-1] == [19, 20]


@pytest.mark.parametrize(("batch_size", "world_size"), [(5, 2), (0, 1), (-4, 2), (2, 4)])
def test_a_batch_that_cannot_be_shared_is_refused(batch_size: int, world_size: int) -> None:
    with pytest.raises(InputError, match=f"batch size {batch_size} must be a positive multiple of the {world_size}"):
        Shuffled(20, batch_size, world_size=world_size)


def test_too_few_samples_are_refused() -> None:
    with pytest.raises(InputError, match="1 samples are too few for 2 processes"):
        InOrder(1, 4, world_size=2)
