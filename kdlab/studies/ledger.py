"""Ledger of a study: one append-only CSV file with a line for each run that ended."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from kdlab.errors import InputError
from kdlab.files import locked, write_text
from kdlab.studies.columns import FIELDS

FINISHED, FAILED = "finished", "failed"


class Ledger:
    """Rows by run; of several rows of a run the last counts.

    A file of an older kdlab, with fewer columns, is read with empty values and gets the new columns when a row is
    added.

    Args:
        path: the CSV file; it need not exist.

    Raises:
        InputError: the file is no ledger, or has columns of a newer kdlab.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        _, self.rows = self._read()

    def last(self, run: str) -> dict[str, str] | None:
        """Return the row of a run that counts; ``None`` where there is none."""
        return next((row for row in reversed(self.rows) if row["run"] == run), None)

    def finished(self, run: str) -> bool:
        """Return whether a run is done."""
        row = self.last(run)
        return row is not None and row["status"] == FINISHED

    def append(self, values: Mapping[str, Any]) -> None:
        """Add one row; ``None`` becomes empty and a float keeps every digit.

        Raises:
            InputError: the file is no ledger by now, or has columns of a newer kdlab.
        """
        row = {name: "" if values.get(name) is None else str(values[name]) for name in FIELDS}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with locked(self.path.with_name(f".{self.path.name}.lock"), "the ledger is in use", wait=True):
            text, rows = self._read()
            if next(csv.reader(io.StringIO(text)), None) != list(FIELDS):
                text = ",".join(FIELDS) + "\n" + _lines(rows)
                write_text(self.path, text)
            with self.path.open("r+b") as file:
                file.seek(len(text.encode()))
                file.truncate()
                file.write(_lines([row]).encode())
                file.flush()
                os.fsync(file.fileno())
        self.rows.append(row)

    def _read(self) -> tuple[str, list[dict[str, str]]]:
        """Return the complete lines of the file and their rows; a line that a crash cut off is left out."""
        content = self.path.read_bytes() if self.path.exists() else b""
        text = content[: content.rfind(b"\n") + 1].decode()
        reader = csv.DictReader(io.StringIO(text))
        if text:
            columns = set(reader.fieldnames or ())
            if missing := {"run", "config", "status", "accuracy"} - columns:
                raise InputError(f"{str(self.path)!r} is no ledger of a study: it has no column {min(missing)!r}.")
            if unknown := columns - set(FIELDS):
                raise InputError(
                    f"{str(self.path)!r} was written by another version of kdlab, with other columns, such as "
                    f"{min(unknown)!r}: move it away."
                )
        return text, [{name: row.get(name) or "" for name in FIELDS} for row in reader]


def _lines(rows: Iterable[Mapping[str, str]]) -> str:
    text = io.StringIO()
    csv.DictWriter(text, FIELDS, lineterminator="\n").writerows(rows)
    return text.getvalue()
