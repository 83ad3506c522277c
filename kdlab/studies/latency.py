"""Processor time that a network takes for one sample."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch

SAMPLES, REPEATS = 32, 5


def latency(forward: Callable[[Any], Any], inputs: Iterable[Any]) -> float | None:
    """Return the seconds of a forward of one sample on one thread: the median over 32 samples of the least of 5 each.

    It is the thread's time on the processor: the time that passes where nothing else runs. Other work on the machine
    lengthens it too, by what both share (caches, the memory, a virtual machine's core).

    Args:
        forward: the network on the processor, in eval mode.
        inputs: batches of one sample; ``None`` is returned if there are none.
    """
    least, threads = [], torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            for sample in itertools.islice(inputs, SAMPLES):
                times = []
                for _ in range(REPEATS):
                    before = time.thread_time()
                    forward(sample)
                    times.append(time.thread_time() - before)
                least.append(min(times))
    finally:
        torch.set_num_threads(threads)
    return statistics.median(least) if least else None
