"""The progress of a whole study, with the time left."""

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

    Every run weighs its epochs times the estimated seconds of one; how fast this machine really is comes from what has
    been done since the bar was opened.

    Args:
        work: the study's.
        seconds: of an epoch, by the key of a run that is to do.
        console: where to draw; where it is no terminal, a line is printed for each run that starts or ends.
    """

    def __init__(self, work: Work, seconds: Mapping[str, float], console: Console) -> None:
        self.work, self.console = work, console
        self.weights = {run.key: max(seconds.get(run.key, 0.0), 1e-9) * run.epochs for run in work.runs}
        self.total = sum(self.weights[run.key] for run in work.runs if not work.done(run))
        self.before: float | None = None
        self.since = time.monotonic()
        self.started: set[str] = set()
        self.said: set[str] = {run.key for run in work.runs if work.done(run)}
        columns = (TextColumn("{task.fields[runs]}"), BarColumn(), TextColumn("{task.fields[left]}"))
        self.progress = Progress(
            *columns, TimeElapsedColumn(), TextColumn("{task.fields[now]}"), console=console, transient=True
        )
        self.task = self.progress.add_task("", total=self.total, runs="", left="", now="")

    def __enter__(self) -> StudyBar:
        if self.console.is_terminal:
            self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def __call__(self, running: Sequence[Run], outcome: Mapping[str, str]) -> None:
        """Draw how things stand."""
        done, now = 0.0, []
        for run in self.work.runs:
            if run.key in outcome and run.key not in self.said:
                self.said.add(run.key)
                self._say_started(run, outcome[run.key] == FINISHED)
                self.console.print(
                    f"{'done' if outcome[run.key] == FINISHED else 'FAILED'}: {run.name}", highlight=False
                )
            if run.key in outcome and outcome[run.key] == FINISHED:
                done += self.weights[run.key]
        for run in running:
            status: dict[str, Any] = read_json(self.work.folder(run) / STATUS) or {}
            self._say_started(run, status.get("state") == "running")
            epoch, epochs = status.get("epoch") or 0, status.get("epochs") or 0
            if epochs and epochs > 0:
                done += self.weights[run.key] * min(1.0, epoch / epochs)
                now.append(f"{run.name}: epoch {epoch} of {epochs}")
            else:
                now.append(run.name)
        self.before = done if self.before is None else self.before
        passed, advanced = time.monotonic() - self.since, done - self.before
        whole = sum(self.weights.values())
        left = passed / advanced * (whole - done) if advanced > 0 else None
        self.progress.update(
            self.task,
            total=whole,
            completed=done,
            runs=f"{len(outcome)} of {len(self.work.runs)} runs",
            left="" if left is None else f"{_short(left)} left",
            now="; ".join(now[:2]) + (f" and {len(now) - 2} more" if len(now) > 2 else ""),
        )

    def _say_started(self, run: Run, started: bool) -> None:
        """Once; of a run that was over before anybody looked, when it is over."""
        if started and run.key not in self.started:
            self.started.add(run.key)
            if not self.console.is_terminal:
                self.console.print(f"started: {run.name}", highlight=False)


def _short(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{max(minutes, 1)} min"
