"""The ledger: one append-only CSV of runs, a line for each that ended."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdlab.errors import InputError
from kdlab.studies.locks import locked

FIELDS = (
    *("run", "config", "data", "kind", "pair", "method", "seed", "status", "error"),
    *("accuracy", "best_accuracy", "best_epoch", "agreement", "kl_to_teacher", "ece", "teacher_accuracy"),
    *("ensemble_accuracy", "network", "parameters", "batch", "rate", "epochs", "steps", "precision", "processes"),
    *("seconds", "device", "kdlab", "commit", "torch", "lightning", "python", "finished"),
)
"""``run`` is the identity, ``config`` the hash of the recipe with its seed and code, ``data`` the fingerprint;
accuracies are shares in [0, 1] with every digit; ``batch`` is the global batch, ``seconds`` of training with
validation."""
OTHER = "was written by another version of kdlab, with other columns: move it away."
FINISHED, FAILED = "finished", "failed"


class Ledger:
    """Rows by run; a later row of the same run counts instead of an earlier one.

    Args:
        path: the CSV file; it need not exist.

    Raises:
        InputError: the file is no ledger.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, str]] = []
        if not path.exists():
            return
        known = path.read_bytes()
        text = known[: known.rfind(b"\n") + 1].decode()  # without a line that was being written when the power went
        reader = csv.DictReader(io.StringIO(text))
        if text and (missing := {"run", "config", "status", "accuracy"} - set(reader.fieldnames or ())):
            raise InputError(f"{str(path)!r} is no ledger of a study: it has no column {sorted(missing)[0]!r}.")
        if text and list(reader.fieldnames or ()) != list(FIELDS):
            raise InputError(f"{str(path)!r} {OTHER}")
        self.rows = list(reader)

    def last(self, run: str) -> dict[str, str] | None:
        """The row that counts of a run; ``None`` where there is none."""
        return next((row for row in reversed(self.rows) if row["run"] == run), None)

    def finished(self, run: str) -> bool:
        """Whether a run is done."""
        row = self.last(run)
        return row is not None and row["status"] == FINISHED

    def append(self, values: Mapping[str, Any]) -> None:
        """Add one row at the end, whole; ``None`` becomes empty and a float keeps every digit.

        Raises:
            InputError: the file has other columns, of another version of kdlab.
        """
        row = {name: "" if values.get(name) is None else str(values[name]) for name in FIELDS}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with locked(self.path.with_name(f".{self.path.name}.lock"), "the ledger is in use", wait=True):
            known = self.path.read_bytes() if self.path.exists() else b""
            whole = known[: known.rfind(b"\n") + 1]
            header = next(csv.reader(io.StringIO(whole.decode())), None)
            if header is not None and header != list(FIELDS):
                raise InputError(f"{str(self.path)!r} {OTHER}")
            text = io.StringIO()
            writer = csv.DictWriter(text, FIELDS, lineterminator="\n")
            if header is None:
                writer.writeheader()
            writer.writerow(row)
            with self.path.open("r+b" if known else "wb") as file:
                file.truncate(len(whole))
                file.seek(len(whole))
                file.write(text.getvalue().encode())
                file.flush()
                os.fsync(file.fileno())
        self.rows.append(row)
