"""Figures of a study's runs that are on this machine."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from kdlab.config.run_arguments import last_checkpoint
from kdlab.figures import drawing
from kdlab.figures.curve_rows import curve_rows
from kdlab.figures.evidence import Plot
from kdlab.figures.run_figures import evaluated, write
from kdlab.studies.ledger import FINISHED, Ledger
from kdlab.studies.runs import Run


def write_figures(runs: Sequence[Run], ledger: Ledger, folder: Path, out: Path) -> Iterator[Path]:
    """Write the curves of each pair's methods, and how each student compares with its teacher; yield the paths.

    Of each method it is the first seed that is finished and whose folder is here; ``out`` gets a folder for each pair.

    Args:
        runs: of the study.
        ledger: of the study.
        folder: of the runs.
        out: folder to write to.
    """
    data = {row["config"]: row["data"] for row in ledger.rows if row["status"] == FINISHED}
    pairs: dict[str, dict[str, Path]] = {}
    for run in runs:
        for cell in run.cells:
            if run.key in data and ((place := run.folder(folder, data[run.key])) / "metrics.csv").is_file():
                pairs.setdefault(cell.pair, {}).setdefault(cell.method, place)
    for pair, methods in pairs.items():
        target = out / _plain(pair)
        rows = curve_rows(methods)
        yield from write(Plot("curves", rows, drawing.curves(rows)), target)
        for method, place in methods.items():
            if last_checkpoint(place).is_file():
                for plot in evaluated(place):
                    yield from write(plot, target / _plain(method))


def _plain(name: str) -> str:
    return re.sub(r"[^\w.+-]+", "-", name.replace(" → ", "-to-")).strip("-")
