"""Shared checks of losses on the last feature map and its classifier."""

from __future__ import annotations

from torch import Tensor

from kdlab.errors import InputError
from kdlab.losses.checks import Pair, at_least, map_pairs
from kdlab.outputs import Outputs


def one_pair(student: Outputs, teacher: Outputs) -> Pair:
    """Return the only pair of tapped maps.

    Raises:
        InputError: as :func:`~kdlab.losses.checks.map_pairs`, or several pairs.
    """
    pairs = map_pairs(student, teacher)
    if len(pairs) != 1:
        raise InputError(
            f"This loss compares one pair of maps, but {len(pairs)} are tapped: tap the last map of each network."
        )
    return pairs[0]


def checked_weight(weight: Tensor, values: Tensor, side: str, layer: str) -> Tensor:
    """Return a classifier's ``weight`` (K, C) in the dtype of ``values`` (B, C, ...).

    Raises:
        InputError: their channels differ.
    """
    if weight.shape[1] != values.shape[1]:
        raise InputError(
            f"The {side}'s classifier reads {weight.shape[1]} channels, but layer {layer!r} has {values.shape[1]}: "
            "tap the last map, which is pooled and classified."
        )
    return weight.to(values.dtype)


def whole_number(name: str, value: int, least: int = 1) -> int:
    """Return ``value`` as an int.

    Raises:
        InputError: it is not a whole number of at least ``least``.
    """
    if at_least(name, value, least) != int(value):
        raise InputError(f"{name} must be a whole number, not {value!r}.")
    return int(value)
