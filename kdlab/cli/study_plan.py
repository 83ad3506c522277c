"""The plan of a study: its runs with their states, and what those to come will take."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta

from rich.box import SIMPLE_HEAD
from rich.table import Column, Table

from kdlab.studies.ledger import FINISHED
from kdlab.studies.preflight import Estimate
from kdlab.studies.scheduler import Work


def plan(work: Work, estimates: Mapping[str, Estimate]) -> tuple[Table, str]:
    """Return every run with its state, and the time and memory of those to come on this machine."""
    numbers = [Column(name, justify="right") for name in ("epochs", "time", "memory MB")]
    shown = Table("run", "state", *numbers, box=SIMPLE_HEAD, header_style="bold", padding=(0, 1, 0, 0))
    states = {run.key: work.state(run) for run in work.runs}
    total = start = largest = 0.0
    for run in work.runs:
        cells = ["", ""]
        if run.key in estimates and states[run.key] != FINISHED:
            seconds, memory, fixed = estimates[run.key]
            seconds = fixed + seconds * run.epochs
            total, start, largest = total + seconds, start + fixed, max(largest, memory)
            cells = [_time(seconds), _megabytes(memory)]
        shown.add_row(run.name, states[run.key], str(run.epochs), *cells)
    count = sum(state != FINISHED for state in states.values())
    summary = (
        f"{len(work.runs)} runs, {count} to do, about {_time(total)} one after the other on this machine, "
        f"{_megabytes(largest)} MB at most, without data in memory.\nEstimated from a step on few samples: "
        f"{_time(start)} of it are starts. Ledger: {work.ledger.path}"
    )
    return shown, summary


def _time(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds))) if seconds >= 1 else f"{seconds:.1f} s"


def _megabytes(memory: float) -> str:
    return f"{memory / 2**20:.{0 if memory >= 10 * 2**20 else 1}f}"
