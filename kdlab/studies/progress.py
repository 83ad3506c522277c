"""Progress bar of a whole study, with the time left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from kdlab.files import read_json
from kdlab.studies.ledger import FINISHED
from kdlab.studies.run_callback import STATUS
from kdlab.studies.runs import Run
from kdlab.studies.scheduler import Work

YEAR = 365 * 24 * 3600.0


class StudyBar:
    """One line: runs done, time passed, time left, what is under way.

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
        self.ended = {run.key for run in work.runs if work.done(run)}
        self.started: set[str] = set()
        left = TimeRemainingColumn(), TextColumn("left"), TextColumn("{task.fields[now]}")
        columns = (TextColumn("{task.fields[runs]}"), BarColumn(), TimeElapsedColumn(), TextColumn("passed,"), *left)
        self.progress = Progress(*columns, console=console, transient=True, speed_estimate_period=YEAR)
        self.task = self.progress.add_task("", total=sum(self.weights.values()), runs="", now="")

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
            done += self.weights[run.key] * min(1.0, epoch / epochs) if epochs > 0 else 0.0
            now.append(f"{run.name}: epoch {epoch} of {epochs}" if epochs > 0 else run.name)
        more = f" and {len(now) - 2} more" if len(now) > 2 else ""
        runs = f"{len(outcome)} of {len(self.work.runs)} runs"
        self.progress.update(self.task, completed=done, runs=runs, now="; ".join(now[:2]) + more)

    def _print_started(self, run: Run) -> None:
        if run.key not in self.started and not self.console.is_terminal:
            self.console.print(f"started: {run.name}", highlight=False)
        self.started.add(run.key)
