"""Runs in forked processes that are killed at any moment and started again: a fork costs no import."""

from __future__ import annotations

import contextlib
import csv
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

Job = Callable[[Path], None]
"""Starts a run in a folder, or resumes it there."""


def fork(job: Job, folder: Path, writes: int = 0) -> int:
    """Run ``job`` in a process group of its own; with ``writes``, it kills itself at that file replacement."""
    folder.mkdir(parents=True, exist_ok=True)
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.setsid()
        log = os.open(folder / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for stream in (1, 2):
            os.dup2(log, stream)
        if writes:
            _die_at_write(writes)
        job(folder)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        sys.stdout.flush()
        os._exit(code)


def _die_at_write(count: int) -> None:
    """Kill the process group before, or between write and rename of, a file replacement."""
    left = [count]
    for name in ("fsync", "replace"):
        real = getattr(os, name)

        def counted(*args: Any, _real: Any = real, **options: Any) -> Any:
            left[0] -= 1
            if not left[0]:
                os.killpg(0, signal.SIGKILL)
            return _real(*args, **options)

        setattr(os, name, counted)


def killed(job: Job, folder: Path, chance: random.Random, kills: int, longest: float) -> tuple[int, int]:
    """Kill a run ``kills`` times and let it end; return the kills that hit and the number of starts after the first."""
    hits = starts = 0
    while hits < kills:
        in_write = chance.random() < 0.3
        pid = fork(job, folder, writes=chance.randint(1, 12) if in_write else 0)
        starts += 1
        end = time.monotonic() + (60 if in_write else chance.uniform(0.02, 1.05) * longest)
        while alive(pid) and time.monotonic() < end:
            time.sleep(0.002)
        hit = alive(pid)
        if hit:
            _kill(pid, chance)
        _, status = os.waitpid(pid, 0)
        if not hit and not os.WIFSIGNALED(status):  # the run was quicker
            assert status == 0, (folder / "output.txt").read_text()[-3000:]
            return hits, starts - 1
        hits += 1
    _, status = os.waitpid(fork(job, folder), 0)
    assert status == 0, (folder / "output.txt").read_text()[-3000:]
    return hits, starts


def _kill(pid: int, chance: random.Random) -> None:
    """Kill the group; or of several processes one, and then those that do not end with it."""
    if others := children(pid):
        victim = chance.choice([pid, *others, None])
        if victim is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
            end = time.monotonic() + 20
            while time.monotonic() < end and any(map(alive, [pid, *others])):
                time.sleep(0.01)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def alive(pid: int) -> bool:
    """Return whether a process runs."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def children(pid: int) -> list[int]:
    """Return the processes that a process started."""
    try:
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def state(folder: Path) -> dict[str, Any]:
    """Return what the last checkpoint holds that a kill must not change: weights, optimizer, rates, seed, callbacks."""
    content = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    names = ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch")
    return {name: content[name] for name in (*names, *(name for name in content if name.startswith("kdlab_")))}


def rows(folder: Path) -> dict[tuple[str, str], set[str]]:
    """Return the logged values by (step, name), of all files of a run: a step that ran twice has one value."""
    values: dict[tuple[str, str], set[str]] = {}
    for path in folder.glob("metrics*.csv"):
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                if None in row or None in row.values():
                    continue  # a line that a kill cut off; what it held comes again
                for name, value in row.items():
                    if value and name != "step":
                        values.setdefault((row["step"], name), set()).add(value)
    return values


def differences(one: Any, other: Any, place: str = "") -> Iterator[str]:
    """Yield the places at which two nested values differ in any bit."""
    if isinstance(one, torch.Tensor):
        if not (isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)):
            yield place
    elif isinstance(one, dict) and isinstance(other, dict):
        for key in {**one, **other}:
            yield from differences(one.get(key), other.get(key), f"{place}.{key}")
    elif isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        for number, pair in enumerate(zip(one, other, strict=True)):
            yield from differences(*pair, f"{place}.{number}")
    elif one != other:
        yield place


def compare(whole: Path, folder: Path) -> tuple[int, int, list[str]]:
    """Return the numbers of log values that are lost, and of values that differ, against a run never killed."""
    wrong = list(differences(state(whole), state(folder)))
    for path in whole.glob("*.safetensors"):
        wrong += [] if path.read_bytes() == (folder / path.name).read_bytes() else [path.name]
    expected, found = rows(whole), rows(folder)
    lost = [key for key in expected if key not in found]
    wrong += [str(key) for key in found if found[key] != expected.get(key)]
    return len(lost), len(wrong), [*(f"lost {key}" for key in lost), *(f"different {key}" for key in wrong)]
