"""Published numbers, and those measured outside a study's runs, with their sources."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import NamedTuple

from kdlab.errors import InputError

FIELDS = ("dataset", "teacher", "student", "method", "top1", "std", "teacher_top1", "student_top1", "source")
MEASURED = ("teacher", "student", "method", "seed", "accuracy", "source")


class Published(NamedTuple):
    """One published accuracy, in percent."""

    top1: float
    source: str


def read(path: Path) -> dict[tuple[str, str, str], Published]:
    """Return published accuracies by (teacher, student, method), from a CSV file with the columns :data:`FIELDS`.

    Raises:
        InputError: the file has other columns, text for a number, two values for one cell, or a row without a source
            or with one marked as unverified.
    """
    values: dict[tuple[str, str, str], Published] = {}
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != FIELDS:
            raise InputError(f"{path} has to have the columns {','.join(FIELDS)}.")
        for row in reader:
            where = f"{path}, line {reader.line_num}"
            if None in row:
                raise InputError(f"{where}: a value with a comma in it stands in quotes.")
            source = row["source"] or ""
            if not source or "UNVERIFIED" in source.upper():
                raise InputError(f"{where}: a published number needs a source that was checked, not {source!r}.")
            try:
                top1 = float(row["top1"])
            except ValueError as error:
                raise InputError(f"{where}: {row['top1']!r} is no number.") from error
            key = row["teacher"], row["student"], row["method"]
            if key in values:
                raise InputError(f"{where}: there is a value for {', '.join(key)} already: keep one source.")
            values[key] = Published(top1, source)
    return values


class Measured(NamedTuple):
    """Accuracies in [0, 1] of one cell or teacher, by seed, and how they were measured."""

    accuracies: dict[int, float]
    source: str


def read_measured(path: Path) -> dict[tuple[str, str, str], Measured]:
    """Return accuracies by (teacher, student, method), from a CSV file with the columns :data:`MEASURED`.

    A teacher's own line has no student and the method "teacher".

    Raises:
        InputError: the file has other columns, no number, a line without a source, or a seed twice.
    """
    values: dict[tuple[str, str, str], Measured] = {}
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != MEASURED:
            raise InputError(f"{path} has to have the columns {','.join(MEASURED)}.")
        for row in reader:
            where = f"{path}, line {reader.line_num}"
            try:
                seed, accuracy = int(row["seed"]), float(row["accuracy"])
            except (TypeError, ValueError) as error:
                raise InputError(f"{where}: seed and accuracy are numbers.") from error
            if not 0 <= accuracy <= 1 or not row["source"]:
                raise InputError(f"{where}: an accuracy is from 0 to 1 and has a source.")
            key = row["teacher"], row["student"], row["method"]
            cell = values.setdefault(key, Measured({}, row["source"]))
            if seed in cell.accuracies:
                raise InputError(f"{where}: seed {seed} of {', '.join(key)} is there twice.")
            cell.accuracies[seed] = accuracy
    return values
