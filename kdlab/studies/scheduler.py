"""The study's loop: start what can start, enter what ended into the ledger, go on when one fails."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from kdlab.studies.files import read_json, write_json
from kdlab.studies.launchers import Launcher
from kdlab.studies.ledger import FAILED, FINISHED, Ledger
from kdlab.studies.run_callback import STATUS
from kdlab.studies.runs import RESULT, STUDENT, Run

Watch = Callable[[Sequence[Run], Mapping[str, str]], None]
"""Told, about every second, which runs are under way and the outcome, by key, of those that ended."""


class Work:
    """The runs of a study on this machine or cluster, and where they are kept.

    Args:
        runs: in the order in which to do them.
        data: fingerprint of the data of a run.
        folder: of all runs.
        ledger: takes a row for each that ends.
    """

    def __init__(self, runs: Sequence[Run], data: Callable[[Run], str], folder: Path, ledger: Ledger) -> None:
        self.runs, self.data, self.root, self.ledger = list(runs), data, folder, ledger

    def folder(self, run: Run) -> Path:
        """A run's own."""
        return run.folder(self.root, self.data(run))

    def identity(self, run: Run) -> str:
        """A run's own."""
        return run.identity(self.data(run))

    def done(self, run: Run) -> bool:
        """Whether there is nothing to do: it is in the ledger and, if a student still waits, its weights are there."""
        if not self.ledger.finished(self.identity(run)):
            return False
        return (self.folder(run) / STUDENT).exists() or not self.teaches(run)

    def teaches(self, run: Run) -> bool:
        """Whether a run that is not done waits for this one's weights."""
        taught = [each for each in self.runs if each.teacher is not None and each.teacher.key == run.key]
        return any(not self.ledger.finished(self.identity(each)) for each in taught)

    def state(self, run: Run) -> str:
        """ "finished", "failed", "interrupted" or "new"."""
        if self.done(run):
            return FINISHED
        folder = self.folder(run)
        if (read_json(folder / STATUS) or {}).get("state") == FAILED:  # by itself, after its last checkpoint
            return FAILED
        if (folder / "checkpoints" / "last.ckpt").exists():
            return "interrupted"
        row = self.ledger.last(self.identity(run))
        return FAILED if row is not None and row["status"] == FAILED else "new"

    def carry_out(
        self, launcher: Launcher, loggers: Callable[[Run], Sequence[Mapping[str, Any]]], watch: Watch
    ) -> dict[str, str]:
        """Do everything that is not done; returns for each run, by key, "finished" or the reason why it is not."""
        outcome = {run.key: FINISHED for run in self.runs if self.done(run)}
        waiting = [run for run in self.runs if run.key not in outcome]
        running: dict[Path, Run] = {}
        try:
            while waiting or running:
                for run in list(waiting):
                    teacher = run.teacher.key if run.teacher is not None else None
                    if teacher is not None and outcome.get(teacher, FINISHED) != FINISHED:
                        outcome[run.key] = f"its teacher failed: {outcome[teacher]}"
                        waiting.remove(run)
                    elif (teacher is None or teacher in outcome) and launcher.room():
                        waiting.remove(run)
                        taught = self.folder(run.teacher) if run.teacher is not None else None
                        folder = run.prepare(self.root, self.data(run), loggers(run), taught)
                        if self.teaches(run) and not (folder / STUDENT).exists():
                            (folder / RESULT).unlink(missing_ok=True)  # its weights were deleted and are needed
                        if read_json(folder / RESULT):  # it ended when the study was killed before it could say so
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
        """Put a run that ended into the ledger; its outcome."""
        result = read_json(folder / RESULT)
        if result is None:
            said = read_json(folder / STATUS) or {}
            error = said.get("error") or f"its process was killed; see {folder / 'log.txt'}"
            if not self.ledger.finished(self.identity(run)):
                self.ledger.append({**self.described(run), "status": FAILED, "error": error})
            return str(error)
        if not self.ledger.finished(self.identity(run)):  # a teacher may be trained again for its weights
            self.ledger.append({**self.described(run), **result, "status": FINISHED})
        return FINISHED

    def described(self, run: Run) -> dict[str, Any]:
        """What the ledger says of a run whether it ended well or not."""
        cell = run.cells[0] if run.cells else None
        model = run.config["model"].get("init_args") or {}
        optimizer = model.get("optimizer")
        rate = (optimizer.get("init_args") or {}).get("lr") if isinstance(optimizer, Mapping) else None
        return {
            "run": self.identity(run),
            "config": run.key,
            "data": self.data(run),
            "kind": "student" if run.cells else "teacher",
            "pair": cell.pair if cell else "",
            "method": cell.method if cell else "",
            "seed": run.seed,
            "network": run.network,
            "batch": ((run.config.get("data") or {}).get("init_args") or {}).get("batch_size"),
            "rate": rate,
            "epochs": run.config["trainer"].get("max_epochs"),
            "precision": run.config["trainer"].get("precision"),
            "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        }
