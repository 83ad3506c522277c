"""The table of one data set, in Markdown."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def table(file: Path, methods: Mapping[str, Any]) -> str:
    """Mean and standard deviation over the seeds, and the difference from plain training on the same seeds."""
    with file.open() as lines_of:
        rows = list(csv.DictReader(lines_of))
    lines = [
        f"### {file.stem}",
        "",
        "| method | setting | accuracy, % | minus plain | ensemble, % | others, % | ECE, % | cost | n |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    of = {(row["method"], row["seed"]): row for row in rows}
    for name, method in methods.items():
        own = [row for row in rows if row["method"] == name]
        if not own:
            continue
        both = [(row, of["plain", row["seed"]]) for row in own if ("plain", row["seed"]) in of]
        gains = [float(row["accuracy"]) - float(base["accuracy"]) for row, base in both]
        ensembles = [float(row["ensemble"]) for row in own if row["ensemble"]]
        cells = [
            name,
            method.setting,
            spread([float(row["accuracy"]) for row in own]),
            "" if name == "plain" else spread(gains, sign=True),
            spread(ensembles) if ensembles else "",
            others(own),
            f"{statistics.fmean(float(row['ece']) for row in own):.1f}",
            f"{method.cost:.2f}",
            str(len(own)),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def spread(values: list[float], sign: bool = False) -> str:
    """Mean, and the standard deviation of the sample where there are several."""
    mean = f"{statistics.fmean(values):+.1f}" if sign else f"{statistics.fmean(values):.1f}"
    return f"{mean} ± {statistics.stdev(values):.1f}" if len(values) > 1 else mean


def others(rows: list[dict[str, str]]) -> str:
    """The means of what else was reported."""
    found: dict[str, list[float]] = {}
    for row in rows:
        for part in row["others"].split():
            name, _, value = part.partition("=")
            found.setdefault(name, []).append(float(value))
    return ", ".join(f"{name} {statistics.fmean(values):.1f}" for name, values in found.items())
