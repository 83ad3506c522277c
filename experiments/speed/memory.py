"""Peak memory: what one contestant's first turn takes on top of what was there before it, in a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

STEPS = 10


def extra(work: Callable[[], Any], device: torch.device) -> float:
    """MiB that ``work`` takes at its peak over what is taken when it starts: allocated on CUDA, else resident."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    forget_peak()
    before_kib = resident("VmRSS")
    work()
    return (resident("VmHWM") - before_kib) / 2**10


def forget_peak() -> None:
    """Let Linux count the peak anew (a process inherits the peak of the one that started it)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def resident(field: str) -> int:
    """A field of ``/proc/self/status`` in KiB; elsewhere than on Linux the peak since the process began."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak // 1024 if sys.platform == "darwin" else peak
    return next(int(line.split()[1]) for line in lines if line.startswith(field + ":"))


def measure(names: list[str], device: str) -> dict[str, float]:
    """Extra MiB by contestant, each in a process of its own."""
    script = str(Path(__file__).with_name("benchmark.py"))
    found = {}
    for name in names:
        command = [sys.executable, script, "--peak-of", name, "--device", device]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ)
        if done.returncode:
            raise RuntimeError(f"The memory of {name} could not be measured:\n{done.stderr[-2000:]}")
        found[name] = float(json.loads(done.stdout.splitlines()[-1]))
    return found
