"""The choice of a fast copy by timing: every option that is allowed, in alternating rounds on one batch."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from kdlab.members.fast_copy import Copy, Trial
from kdlab.members.fast_options import Fast

ROUNDS, FEWEST = 9, 3
"""Rounds of a timing, and those that it has however long they take."""
SECONDS, TURN = 20.0, 0.02
"""Seconds after which no further round begins, and the least that a turn lasts."""
GAIN = 0.02
"""The share by which a copy must be faster than the network, and a copy with more changes than one with fewer."""


@dataclass(frozen=True)
class Choice:
    """What was chosen.

    Attributes:
        copy: the fastest copy, or the network itself.
        record: the choice, and what was measured, as JSON.
        text: the same, for the log.
    """

    copy: Copy
    record: dict[str, Any]
    text: str


def choose(trial: Trial, only_layers: bool, rounds: int = ROUNDS) -> Choice:
    """Time every option that a trial allows, and choose.

    ``compile`` is tried on the fastest of the other options alone, since each compilation may take a minute.

    Args:
        trial: the batch, the network and the options.
        only_layers: whether a forward may stop at the last tapped layer.
        rounds: in which all copies that may be used take turns.
    """
    options = dict.fromkeys(map(trial.effective, trial.fast.combinations(trial.device)))
    copies = [trial.make(option) for option in options]
    timed = finalists = _timed(trial, [copy for copy in copies if not copy.refused], only_layers, rounds)
    best = fastest([ratio for _, _, ratio in timed])
    if trial.fast.compile:
        made = trial.make(replace(timed[best][0].options, compile=True))
        copies.append(made)
        if not made.refused:
            finalists = _timed(trial, [*dict.fromkeys([copies[0], timed[best][0]]), made], only_layers, rounds)
            best = fastest([ratio for _, _, ratio in finalists])
    chosen, seconds, ratio = finalists[best]
    times = {copy: (1e3 * seconds, ratio) for copy, seconds, ratio in [*timed, *finalists]}
    rows = [_row(copy, *times.get(copy, (None, None))) for copy in copies]
    plain = finalists[0][1]
    text = f"{trial.described(chosen.options)}, chosen by timing {len(copies)} options on the first batch: "
    text += f"{1e3 * seconds:.3g} ms, as it is {1e3 * plain:.3g} ms ({ratio:.2f})"
    text += f"; outputs differ most in {chosen.where}, by {chosen.error:.2g}" if chosen.where else ""
    refused = [f"{trial.described(copy.options)}: {copy.refused}" for copy in copies if copy.refused]
    text += f"; not within tolerance: {'; '.join(refused)}" if refused else ""
    return Choice(chosen, {"chosen": chosen.options.changes, "candidates": rows}, text)


def fastest(ratios: Sequence[float]) -> int:
    """Return the place of the choice, from times relative to the first one's, the network's.

    It is the first that takes at most 2 % longer than the fastest of those that are faster than the network by more
    than 2 %, or the network, so that of options that are equally fast always the same one is chosen.

    >>> fastest([1.0, 0.985]), fastest([1.0, 0.9, 0.89]), fastest([1.0, 0.9, 0.85])
    (0, 1, 2)
    """
    faster = {place: ratio for place, ratio in enumerate(ratios) if place and ratio < 1 - GAIN}
    limit = min(faster.values(), default=0.0) * (1 + GAIN)
    return next((place for place, ratio in faster.items() if ratio <= limit), 0)


def in_turns(
    calls: Sequence[Callable[[], object]], device: torch.device, rounds: int = ROUNDS, seconds: float = SECONDS
) -> list[list[float]]:
    """Return the seconds of a call of each function in each round; every other round runs backward.

    A function is called so often in its turn that the turn lasts long enough to be timed; the device is waited for at
    both ends of a turn.
    """
    for call in calls:
        _turn(call, 1, device)
    repeats = [max(1, math.ceil(TURN / max(_turn(call, 1, device), 1e-6))) for call in calls]
    times: list[list[float]] = [[] for _ in calls]
    end = time.perf_counter() + seconds
    for number in range(rounds):
        if number >= FEWEST and time.perf_counter() > end:
            break
        places = range(len(calls))
        for place in places if number % 2 == 0 else reversed(places):
            times[place].append(_turn(calls[place], repeats[place], device))
    return times


def _turn(call: Callable[[], object], repeats: int, device: torch.device) -> float:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return (time.perf_counter() - start) / repeats


def _timed(trial: Trial, copies: Sequence[Copy], only_layers: bool, rounds: int) -> list[tuple[Copy, float, float]]:
    """Return copies with their median time, and with the median of its ratio to the first one's in the same round."""
    calls = [lambda run=copy.runner: run(trial.inputs, only_layers) for copy in copies]
    times = in_turns(calls, trial.device, rounds)
    ratios = [[seconds / first for seconds, first in zip(row, times[0], strict=True)] for row in times]
    return [
        (copy, statistics.median(row), statistics.median(ratio))
        for copy, row, ratio in zip(copies, times, ratios, strict=True)
    ]


def _row(copy: Copy, milliseconds: float | None, ratio: float | None) -> dict[str, Any]:
    timed = {"ms": milliseconds, "of_plain": ratio}
    error = copy.error if math.isfinite(copy.error) else None
    return {**copy.options.changes, **timed, "error": error, "in": copy.where, "refused": copy.refused}


def options_of(record: dict[str, Any], fast: Fast) -> Fast:
    """Return the options of a record of :func:`choose`.

    Raises:
        TypeError: it has other options than a copy.
        InputError: it has an unknown precision.
    """
    return replace(fast, **record["chosen"], timed=False)
