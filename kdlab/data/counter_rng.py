"""Counter-based random numbers: functions of (seed, epoch, sample index, stream), without state."""

from __future__ import annotations

from torch import Tensor

# One independent stream per drawn quantity.
# From 16 on, decoding.py uses AREA to LEFT again for each further try.
ORDER, SUBSET, DOWN, RIGHT, FLIP, AREA, RATIO, TOP, LEFT, STRONG = range(10)
COMPANION, OWN, OTHER, BOX_DOWN, BOX_RIGHT = range(10, 15)

FURTHER = 1 << 20  # no training has as many epochs

_WORD = (1 << 64) - 1
_STEP = 0x9E3779B97F4A7C15
_FIRST = 0xBF58476D1CE4E5B9
_SECOND = 0x94D049BB133111EB


def _signed(value: int) -> int:
    value &= _WORD
    return value - (1 << 64) if value >> 63 else value


def _mix(word: int) -> int:
    """Apply the splitmix64 finalizer to a Python integer."""
    word = ((word ^ (word >> 30)) * _FIRST) & _WORD
    word = ((word ^ (word >> 27)) * _SECOND) & _WORD
    return word ^ (word >> 31)


def _shifted(words: Tensor, by: int) -> Tensor:
    """Shift right logically: int64 shifts extend the sign, which is masked off."""
    return (words >> by) & ((1 << (64 - by)) - 1)


def bits(seed: int, epoch: int, index: Tensor, stream: int) -> Tensor:
    """Return 64 random bits per sample: splitmix64 at the sample's position, keyed by seed, epoch and stream.

    Args:
        seed: any integer.
        epoch: any integer, 0 or more.
        index: int64 tensor of any shape, on any device.
        stream: the use of the bits, one of this module's constants.

    Returns:
        int64 tensor of the same shape; the same on every device and in every batch.
    """
    key = seed
    for part in (epoch, stream):
        key = _mix((key + _STEP) & _WORD) ^ _mix((part + 1) * _STEP & _WORD)
    words = (index + 1) * _signed(_STEP) + _signed(_mix(key))
    words = (words ^ _shifted(words, 30)) * _signed(_FIRST)
    words = (words ^ _shifted(words, 27)) * _signed(_SECOND)
    return words ^ _shifted(words, 31)


def shown(epoch: int, distinct_epochs: int | None, number: int = 0) -> int:
    """Return the epoch number for drawing an augmentation.

    Args:
        epoch: the epoch number of the training.
        distinct_epochs: number of epochs after which the augmentation repeats; ``None`` for never.
        number: 0 for the batch's augmentation; others for further ones, which differ from that of every epoch.
    """
    return (epoch % distinct_epochs if distinct_epochs else epoch) + number * FURTHER


def integers(high: int | Tensor, seed: int, epoch: int, index: Tensor, stream: int) -> Tensor:
    """Draw uniform integers from 0 to ``high`` - 1, int64; see :func:`bits`.

    ``high`` is at most 2**31, one for all samples or one per sample.

    >>> import torch
    >>> integers(9, 0, 3, torch.tensor([5, 6, 7]), DOWN).tolist() == [
    ...     int(integers(9, 0, 3, torch.tensor(i), DOWN)) for i in (5, 6, 7)]
    True
    """
    return (_shifted(bits(seed, epoch, index, stream), 33) * high) >> 31


def uniform(seed: int, epoch: int, index: Tensor, stream: int) -> Tensor:
    """Draw uniform float64 numbers in [0, 1) with 53 random bits; see :func:`bits`."""
    return _shifted(bits(seed, epoch, index, stream), 11).double() / (1 << 53)
