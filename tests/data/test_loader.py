"""A loader's position in the epoch: saved, loaded and counted by consumed batches."""

from __future__ import annotations

import itertools

import pytest

from kdlab.data.loader import Loader
from tests.data.tiny import Tiny


def loaders(workers: int) -> Loader:
    data = Tiny(num_workers=workers, padding=1)
    data.setup()
    return data.train_dataloader()


def epoch_of(batches: Loader, epoch: int) -> list[list[int]]:
    batches.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
    return [batch.index.tolist() for batch in batches]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_killed_epoch_goes_on_at_the_next_batch(workers: int) -> None:
    whole = loaders(0)
    expected, following = epoch_of(whole, 2), epoch_of(whole, 3)
    assert len(expected) == len(whole) == 6
    killed = loaders(workers)
    killed.sampler.set_epoch(2)  # type: ignore[attr-defined]
    got = [batch.index.tolist() for batch in itertools.islice(killed, 4)]
    state = killed.state_dict()
    assert state == {"epoch": 2, "batches": 4}
    assert got == expected[:4]
    resumed = loaders(workers)
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state  # killed again before the first batch
    assert len(resumed) == 6
    assert [batch.index.tolist() for batch in resumed] == expected[4:]
    assert resumed.state_dict() == {"epoch": 3, "batches": 0}
    assert epoch_of(resumed, 3) == following  # full again, with the same workers


def test_a_finished_epoch_is_the_start_of_the_next() -> None:
    batches = loaders(0)
    assert batches.state_dict() == {"epoch": 0, "batches": 0}
    epoch_of(batches, 0)
    resumed = loaders(0)
    resumed.load_state_dict(batches.state_dict())
    assert [batch.index.tolist() for batch in resumed] == epoch_of(loaders(0), 1)


def test_a_place_in_another_epoch_is_not_used() -> None:
    batches = loaders(0)
    batches.load_state_dict({"epoch": 4, "batches": 3})
    assert len(epoch_of(batches, 5)) == 6
    assert len(epoch_of(batches, 4)) == 6  # and is gone


def test_the_epoch_is_read_at_the_first_batch() -> None:
    batches = loaders(0)
    early = iter(batches)  # as Lightning does, before it sets the epoch
    batches.sampler.set_epoch(3)  # type: ignore[attr-defined]
    assert [batch.index.tolist() for batch in early] == epoch_of(loaders(0), 3)
