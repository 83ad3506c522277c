"""Progress bar of a whole study, with the time left."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from kdlab.studies.files import read_json
from kdlab.studies.ledger import FINISHED
from kdlab.studies.run_callback import STATUS
from kdlab.studies.runs import Run
from kdlab.studies.scheduler import Work


class StudyBar:
    """One line: runs done, what is under way, time left.

    Every run weighs its epochs times the estimated seconds of one epoch; the speed of this machine is measured since
    the bar was opened.

    Args:
        work: of the study.
        seconds: of an epoch, by the key of a run that is to do.
        console: where to draw; where it is no terminal, a line is printed for each run that starts or ends.
    """

    def __init__(self, work: Work, seconds: Mapping[str, float], console: Console) -> None:
        self.work, self.console = work, console
        self.weights = {run.key: max(seconds.get(run.key, 0.0), 1e-9) * run.epochs for run in work.runs}
        self.before: float | None = None
        self.since = time.monotonic()
        self.ended = {run.key for run in work.runs if work.done(run)}
        self.started: set[str] = set()
        self.progress = Progress(
            TextColumn("{task.fields[runs]}"),
            BarColumn(),
            TextColumn("{task.fields[left]}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[now]}"),
            console=console,
            transient=True,
        )
        self.task = self.progress.add_task("", total=sum(self.weights.values()), runs="", left="", now="")

    def __enter__(self) -> StudyBar:
        if self.console.is_terminal:
            self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def __call__(self, running: Sequence[Run], outcome: Mapping[str, str]) -> None:
        """Draw the runs under way and the outcome of those that ended."""
        done, now = 0.0, []
        for run in self.work.runs:
            ended = outcome.get(run.key)
            if ended and run.key not in self.ended:
                self.ended.add(run.key)
                if ended == FINISHED:  # it may have been over before it was seen running
                    self._print_started(run)
                self.console.print(f"{'done' if ended == FINISHED else 'FAILED'}: {run.name}", highlight=False)
            done += self.weights[run.key] if ended == FINISHED else 0.0
        for run in running:
            status: dict[str, Any] = read_json(self.work.folder(run) / STATUS) or {}
            if status.get("state") == "running":
                self._print_started(run)
            epoch, epochs = status.get("epoch") or 0, status.get("epochs") or 0
            known = epochs > 0
            done += self.weights[run.key] * min(1.0, epoch / epochs) if known else 0.0
            now.append(f"{run.name}: epoch {epoch} of {epochs}" if known else run.name)
        self._draw(done, now, f"{len(outcome)} of {len(self.work.runs)} runs")

    def _draw(self, done: float, now: Sequence[str], runs: str) -> None:
        self.before = done if self.before is None else self.before
        passed, advanced = time.monotonic() - self.since, done - self.before
        left = passed / advanced * (sum(self.weights.values()) - done) if advanced > 0 else None
        self.progress.update(
            self.task,
            completed=done,
            runs=runs,
            left="" if left is None else f"{_duration(left)} left",
            now="; ".join(now[:2]) + (f" and {len(now) - 2} more" if len(now) > 2 else ""),
        )

    def _print_started(self, run: Run) -> None:
        if run.key not in self.started and not self.console.is_terminal:
            self.console.print(f"started: {run.name}", highlight=False)
        self.started.add(run.key)


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{max(minutes, 1)} min"
