"""Latency and memory of functions of a batch."""

from __future__ import annotations

import ctypes
import gc
import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

ROUNDS, SECONDS = 7, 0.4
"""Rounds of each function, and how long a round takes."""
BRIEF = 0.03
"""Seconds of a round of the time of one sample, so that a small study does not wait for it."""
WARM_UP = 3
"""Calls before the first round, which allocate and choose kernels."""
BUSY = 0.1
"""Share of the processors that others may use while latencies count as those of an idle machine."""
SAMPLES = 32
"""Samples over which the time of one sample is taken."""
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Latency(NamedTuple):
    """Milliseconds of a call: medians over rounds of the rounds' 50th and 95th percentile."""

    p50: float
    p95: float


def latencies(
    functions: Mapping[str, Callable[[], Any]],
    rounds: int = ROUNDS,
    clock: Callable[[], float] = time.perf_counter,
    seconds: float | None = None,
) -> dict[str, Latency]:
    """Time functions in alternating rounds, so that a machine that slows down slows all of them.

    Args:
        functions: by name, without arguments.
        rounds: how many.
        clock: returns seconds.
        seconds: how long a round takes, at least three calls.
    """
    times: dict[str, list[Latency]] = {name: [] for name in functions}
    for function in functions.values():
        for _ in range(WARM_UP):
            function()
    for _ in range(rounds):
        for name, function in functions.items():
            times[name].append(_round(function, clock, SECONDS if seconds is None else seconds))
    return {
        name: Latency(*(statistics.median(column) for column in zip(*measured, strict=True)))
        for name, measured in times.items()
    }


def _round(function: Callable[[], Any], clock: Callable[[], float], seconds: float) -> Latency:
    calls, end = list[float](), clock() + seconds
    while len(calls) < 3 or clock() < end:
        start = clock()
        function()
        calls.append(1e3 * (clock() - start))
    return Latency(statistics.median(calls), percentile(calls, 0.95))


def one_sample(forward: Callable[[Any], Any], inputs: Iterable[Any]) -> float | None:
    """Return the seconds of a forward of one sample on one thread, the samples in turn, as of :func:`latencies`.

    It is the thread's time on the processor, so that other runs beside it count little: the time that passes where
    nothing else runs. They still lengthen it by what both share (caches, memory, a virtual machine's core).

    Args:
        forward: the network on the processor, in eval mode.
        inputs: batches of one sample, of which the first 32 count; ``None`` is returned if there are none.
    """
    samples, threads = list(itertools.islice(inputs, SAMPLES)), torch.get_num_threads()
    if not samples:
        return None
    turn = itertools.cycle(samples)
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            return latencies({"": lambda: forward(next(turn))}, clock=time.thread_time, seconds=BRIEF)[""].p50 / 1e3
    finally:
        torch.set_num_threads(threads)


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least this share of the values does not exceed.

    >>> percentile([4.0, 1.0, 3.0, 2.0], 0.5)
    2.0
    """
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def others_load(seconds: float = 0.5) -> float | None:
    """Return the share of all processors that is in use while this process sleeps; ``None`` where it is not known."""
    before = _processor_times()
    time.sleep(seconds)
    after = _processor_times()
    if before is None or after is None or after[1] == before[1]:
        return None
    return 1 - (after[0] - before[0]) / (after[1] - before[1])


def _processor_times() -> tuple[int, int] | None:
    """Return the ticks that all processors were idle, and all ticks."""
    with suppress(OSError, ValueError):
        ticks = [int(word) for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
        return ticks[3] + ticks[4], sum(ticks)
    return None


class PeakMemory:
    """Context manager that measures by how many bytes memory rises at most in its block.

    On a GPU it is the memory that PyTorch allocates there. Elsewhere it is the resident memory (Linux's ``VmHWM``);
    memory that the process has to spare from before is not seen, so it is given back first.

    Attributes:
        bytes: the result, after the block; ``None`` where the system has no such counter.
    """

    def __init__(self, device: torch.device = torch.device("cpu")) -> None:  # noqa: B008
        self.device = device
        self.bytes: float | None = None
        self._before = -1

    def __enter__(self) -> PeakMemory:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self._before = torch.cuda.memory_allocated(self.device)
            return self
        with suppress(OSError, AttributeError):
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        with suppress(OSError):
            CLEAR.write_text("5")
            self._before = _resident("VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        if self.device.type == "cuda":
            self.bytes = float(torch.cuda.max_memory_allocated(self.device) - self._before)
        elif self._before >= 0:
            self.bytes = float(_resident("VmHWM") - self._before)


def peak_memory(load: Callable[[], Callable[[Tensor], Any]], inputs: Tensor) -> float | None:
    """Return by how many bytes :class:`PeakMemory` rises while a network is loaded and runs one batch."""
    load()(inputs)  # imports the runtime
    with PeakMemory() as memory:
        load()(inputs)
    return memory.bytes


def _resident(name: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return 1024 * int(line.split()[1])
