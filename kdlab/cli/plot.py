"""``kdlab plot``: figures of a run, and curves of several."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from kdlab.errors import InputError


def plot(
    run: Path,
    overrides: list[str],
    out: Path | None = None,
    suffix: Literal["png", "svg", "pdf"] = "png",
    curves_only: bool = False,
) -> None:
    """Draw a run: curves, reliability, agreement and confusion of classes, CKA of layers, class correlations.

    kdlab plot RUN [RUN ...] [--KEY=VALUE ...] draws the curves of all runs into one figure, and of the first run how
    student and teacher compare on the test set, which is evaluated for it. Beside each figure is a CSV file with its
    numbers. --KEY=VALUE are options of kdlab fit, such as --data.root=DATA.

    Args:
        run: folder of a run
        overrides: further runs, and options of ``kdlab fit``
        out: folder to write to (default: RUN/figures)
        suffix: format of the figures
        curves_only: draw the curves alone, without evaluating
    """
    from kdlab.figures.run_figures import run_plots, write

    further = [Path(text) for text in overrides if not text.startswith("-")]
    options = [text for text in overrides if text.startswith("-")]
    for folder in (run, *further):
        if not folder.is_dir():
            raise InputError(f"There is no run {str(folder)!r}: give a run's folder, such as runs/version_0.")
    for drawn in run_plots([run, *further], options, curves_only):
        for path in write(drawn, out or run / "figures", suffix):
            print(path)
