"""The study's loop: start runs whose teacher is there, enter runs that ended into the ledger, go on after failures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kdlab.config.run_arguments import last_checkpoint
from kdlab.files import read_json, write_json
from kdlab.studies.columns import COLUMNS
from kdlab.studies.launchers import Launcher
from kdlab.studies.ledger import FAILED, FINISHED, Ledger
from kdlab.studies.run_callback import STATUS
from kdlab.studies.runs import RESULT, STUDENT, Run

Watch = Callable[[Sequence[Run], Mapping[str, str]], None]
"""Called about every second with the runs under way and, by key, the outcome of those that ended."""
Loggers = Callable[[Run], Sequence[Mapping[str, Any]]]
"""Configs of the loggers of a run beside the CSV logger."""


class Work:
    """Runs of a study on this machine or cluster, with their folders and the ledger.

    Args:
        runs: in the order in which to do them.
        data: fingerprint of the data of a run.
        folder: of all runs.
        ledger: gets a row for each run that ends.
        cache: folder of the outputs of frozen teachers; ``None`` for none.
    """

    def __init__(
        self, runs: Sequence[Run], data: Callable[[Run], str], folder: Path, ledger: Ledger, cache: Path | None = None
    ) -> None:
        self.runs, self.data, self.root, self.ledger, self.cache = list(runs), data, folder, ledger, cache

    def folder(self, run: Run) -> Path:
        """Return a run's folder."""
        return run.folder(self.root, self.data(run))

    def identity(self, run: Run) -> str:
        """Return a run's identity."""
        return run.identity(self.data(run))

    def done(self, run: Run) -> bool:
        """Return whether a run is in the ledger and, if a student still waits for its weights, they are there."""
        if not self.ledger.finished(self.identity(run)):
            return False
        return (self.folder(run) / STUDENT).exists() or not self.teaches(run)

    def teaches(self, run: Run) -> bool:
        """Return whether a run that is not done waits for this one's weights."""
        students = [other for other in self.runs if any(awaited.key == run.key for awaited in other.awaited)]
        return any(not self.ledger.finished(self.identity(student)) for student in students)

    def state(self, run: Run) -> str:
        """Return "finished", "failed", "interrupted" or "new"."""
        if self.done(run):
            return FINISHED
        folder = self.folder(run)
        if (read_json(folder / STATUS) or {}).get("state") == FAILED:  # by itself, after its last checkpoint
            return FAILED
        if last_checkpoint(folder).exists():
            return "interrupted"
        row = self.ledger.last(self.identity(run))
        return FAILED if row is not None and row["status"] == FAILED else "new"

    def carry_out(self, launcher: Launcher, loggers: Loggers, watch: Watch) -> dict[str, str]:
        """Do everything that is not done; return for each run, by key, "finished" or the reason why it is not."""
        outcome = {run.key: FINISHED for run in self.runs if self.done(run)}
        waiting = [run for run in self.runs if run.key not in outcome]
        running: dict[Path, Run] = {}
        try:
            while waiting or running:
                for run in list(waiting):
                    ended = [outcome.get(awaited.key) for awaited in run.awaited]
                    if failed := next((reason for reason in ended if reason not in (None, FINISHED)), None):
                        kind = "start" if run.start and outcome.get(run.start.key) == failed else "teacher"
                        outcome[run.key] = f"its {kind} failed: {failed}"
                        waiting.remove(run)
                    elif None not in ended and len(running) < launcher.capacity:
                        waiting.remove(run)
                        folder = self._prepare(run, loggers)
                        if read_json(folder / RESULT):  # it ended when the study was killed before entering it
                            outcome[run.key] = self.enter(run, folder)
                            continue
                        write_json(folder / STATUS, {"state": "waiting"})
                        running[folder] = run
                        launcher.start(folder)
                watch(list(running.values()), outcome)
                for folder in launcher.ended(1.0):
                    run = running.pop(folder)
                    outcome[run.key] = self.enter(run, folder)
        finally:
            launcher.stop()
        watch([], outcome)
        return outcome

    def enter(self, run: Run, folder: Path) -> str:
        """Enter a run that ended into the ledger and return its outcome."""
        outcome, row = FINISHED, read_json(folder / RESULT)
        if row is None:
            status = read_json(folder / STATUS) or {}
            outcome = str(status.get("error") or f"its process was killed; see {folder / 'log.txt'}")
        if not self.ledger.finished(self.identity(run)):  # a teacher may be trained again for its weights
            entry = {"status": FAILED, "error": outcome} if row is None else {**row, "status": FINISHED}
            data = self.data(run)
            known = {column.name: column.planned(run, data) for column in COLUMNS if column.planned}
            self.ledger.append({**known, **entry})
        return outcome

    def _prepare(self, run: Run, loggers: Loggers) -> Path:
        awaited = [self.folder(before) for before in run.awaited]
        folder = run.prepare(self.root, self.data(run), loggers(run), awaited, self.cache)
        if self.teaches(run) and not (folder / STUDENT).exists():
            (folder / RESULT).unlink(missing_ok=True)  # its weights were deleted and are needed
        return folder
