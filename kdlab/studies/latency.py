"""Time that a network takes for one sample on the processor."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch

SAMPLES, REPEATS = 32, 5


def latency(forward: Callable[[Any], Any], inputs: Iterable[Any]) -> float | None:
    """Return the seconds of a forward of one sample: the median over the first 32 of the quickest of 5 each.

    The quickest, since other work of the machine only ever adds to a time.

    Args:
        forward: the network on the processor, in eval mode.
        inputs: batches of one sample; ``None`` is returned if there are none.
    """
    quickest = []
    with torch.inference_mode():
        for sample in itertools.islice(inputs, SAMPLES):
            times = []
            for _ in range(REPEATS):
                before = time.perf_counter()
                forward(sample)
                times.append(time.perf_counter() - before)
            quickest.append(min(times))
    return statistics.median(quickest) if quickest else None
