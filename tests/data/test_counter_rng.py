"""Random numbers depend on (seed, epoch, index, stream) alone, and look random."""

from __future__ import annotations

import itertools

import pytest
import torch

from kdlab.data import counter_rng

WORD = (1 << 64) - 1


def slow(seed: int, epoch: int, index: int, stream: int) -> int:
    """The same bits by Python integers, one sample at a time."""

    def mix(word: int) -> int:
        word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & WORD
        word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & WORD
        return word ^ (word >> 31)

    golden = 0x9E3779B97F4A7C15
    key = seed
    for part in (epoch, stream):
        key = mix((key + golden) & WORD) ^ mix((part + 1) * golden & WORD)
    return mix(((index + 1) * golden + mix(key)) & WORD)


def test_bits_equal_the_slow_reference() -> None:
    index = torch.tensor([0, 1, 2, 77, 49_999, 2**40, 2**62])
    for seed, epoch, stream in itertools.product((0, 1, -3, 2**63), (0, 5, 239), (counter_rng.DOWN, counter_rng.FLIP)):
        got = [value & WORD for value in counter_rng.bits(seed, epoch, index, stream).tolist()]
        assert got == [slow(seed, epoch, each, stream) for each in index.tolist()]


def test_splitmix64_gives_its_published_numbers() -> None:
    # Vigna's splitmix64.c from state 1234567: the finalizer and the step are the real ones.
    state, numbers = 1234567, []
    for _ in range(3):
        state = (state + 0x9E3779B97F4A7C15) & WORD
        numbers.append(counter_rng._mix(state))
    assert numbers == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@pytest.mark.parametrize("high", [2, 5, 9, 100])
def test_integers_are_uniform(high: int) -> None:
    count = 20_000
    drawn = counter_rng.integers(high, 0, 0, torch.arange(count), counter_rng.DOWN)
    observed = torch.bincount(drawn, minlength=high).double()
    assert len(observed) == high
    chi_squared = ((observed - count / high) ** 2 / (count / high)).sum().item()
    assert chi_squared < high - 1 + 5 * (2 * (high - 1)) ** 0.5  # five standard deviations


def test_uniform_numbers_fill_the_unit_interval() -> None:
    drawn = counter_rng.uniform(0, 0, torch.arange(20_000), counter_rng.AREA)
    assert drawn.dtype == torch.float64
    assert 0 <= drawn.min() < 1e-3
    assert 1 - 1e-3 < drawn.max() < 1
    assert abs(drawn.mean() - 0.5) < 0.01
    assert abs(drawn.var() - 1 / 12) < 0.005


@pytest.mark.parametrize("change", [{"seed": 1}, {"epoch": 1}, {"stream": counter_rng.RIGHT}, {"index": 1}])
def test_seeds_epochs_streams_and_neighbors_are_unrelated(change: dict[str, int]) -> None:
    first = {"seed": 0, "epoch": 0, "stream": counter_rng.DOWN, "index": 0}

    def numbers(seed: int, epoch: int, stream: int, index: int) -> torch.Tensor:
        return counter_rng.uniform(seed, epoch, torch.arange(20_000) + index, stream)

    both = torch.stack([numbers(**first), numbers(**(first | change))])
    assert abs(torch.corrcoef(both)[0, 1]) < 0.035  # five standard deviations


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_gpu_draws_the_same() -> None:
    index = torch.arange(10_000)
    assert torch.equal(counter_rng.bits(3, 7, index, 2), counter_rng.bits(3, 7, index.cuda(), 2).cpu())
