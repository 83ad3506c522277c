"""``kdlab demo``: a student with and without its teacher's help, in a process of one thread."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

from kdlab.errors import InputError

ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def demo(seeds: int = 3, epochs: int = 400, out: Path = Path("runs/demo")) -> None:
    """Distill a small student on real digits, on the CPU.

    Args:
        seeds: trainings of each student
        epochs: epochs of each student
        out: folder to create; OUT-2, ... if it exists
    """
    for name, value in (("seeds", seeds), ("epochs", epochs)):
        if value < 1:
            raise InputError(f"--{name} must be at least 1, not {value}.")
    # One thread: the numbers then do not depend on the number of cores, and networks this small train faster. A process
    # of its own: the caller's threads, seeds and log levels stay as they are.
    command = [sys.executable, "-m", "kdlab.cli.demo_report", str(seeds), str(epochs), str(new_folder(out))]
    try:
        status = subprocess.run(command, env={**os.environ, **ONE_THREAD}).returncode
    except KeyboardInterrupt:
        status = 130
    if status:
        raise SystemExit(status)


def new_folder(wanted: Path) -> Path:
    """Create ``wanted``, or the first of ``wanted-2``, ``wanted-3``, ... that does not exist."""
    numbered = (wanted.with_name(f"{wanted.name}-{number}") for number in itertools.count(2))
    try:
        folder = next(path for path in itertools.chain([wanted], numbered) if not path.exists())
        folder.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"--out {str(wanted)!r} cannot be made: {error.strerror}.") from error
    return folder
