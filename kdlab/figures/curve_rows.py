"""Curves of runs from their ``metrics.csv``."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path

from kdlab.errors import InputError
from kdlab.figures.comparison import Rows

SCORES = ("accuracy", "mse", "f1")


def curve_rows(runs: Mapping[str, Path]) -> Rows:
    """Return weighted loss terms and validation scores over the steps, of runs by the name to show.

    A run that was resumed has its earlier numbers in ``metrics.N.csv``; of a step that is there twice the last counts.

    Raises:
        InputError: a run has no ``metrics.csv``.
    """
    return [row for name, folder in runs.items() for row in _of_run(name, folder)]


def _of_run(name: str, folder: Path) -> Rows:
    earlier = sorted(folder.glob("metrics.*.csv"), key=lambda path: int(path.name.split(".")[1]))
    if not (folder / "metrics.csv").is_file():
        raise InputError(f"{str(folder)!r} has no metrics.csv: give the folder of a run with a CSV log.")
    values: dict[tuple[str, str, int], float] = {}
    for path in (*earlier, folder / "metrics.csv"):
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                for key, text in row.items():
                    if text and (place := _place(key, row)):
                        values[(*place, int(row["step"]))] = float(text)
    keys = sorted(values, key=lambda key: key[2])
    return [
        {"run": name, "panel": panel, "series": series, "step": step, "value": values[panel, series, step]}
        for panel, series, step in keys
    ]


def _place(key: str, row: Mapping[str, str]) -> tuple[str, str] | None:
    """Return panel and series of a column; of a term that has a weighted column that one counts."""
    stage, _, rest = key.partition("/")
    if stage == "loss" and "/" not in rest:
        weighted = rest.endswith("_weighted") or not row.get(f"{key}_weighted")
        return ("loss", rest.removesuffix("_weighted")) if weighted else None
    score = rest.rpartition("_")[2]
    if stage == "val" and score in SCORES and "/" not in rest:
        return "score", rest.replace("_", " ")
    return None


def named(folders: list[Path]) -> Iterator[tuple[str, Path]]:
    """Yield each run with the end of its path that tells it from the others."""
    for folder in folders:
        parts, size = folder.resolve().parts, 1
        ends = [other.resolve().parts for other in folders if other.resolve() != folder.resolve()]
        while any(other[-size:] == parts[-size:] for other in ends):
            size += 1
        yield "/".join(parts[-size:]), folder
