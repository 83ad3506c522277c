"""``kdlab report``: the table of a study as Markdown, CSV and a figure."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.markdown import Markdown

from kdlab.cli.reproduce import OpenStudy
from kdlab.studies.render import log_table, markdown, write


def report(
    study: Path,
    overrides: list[str],
    runs: Path = Path("runs"),
    ledger: Path | None = None,
    teacher: list[str] = [],  # noqa: B006
    out: Path | None = None,
    wandb: str | None = None,
) -> None:
    """Print a study's table and write report.md, report.csv and report.png.

    A README.md there that has the marks <!-- kdlab report: begin --> and <!-- kdlab report: end --> gets the table
    between them. Cells that were not run are empty, and runs of another recipe are left out.

    Args:
        study: folder with a study.yaml, or a study file
        overrides: options of ``kdlab fit``
        runs: folder of all studies' runs
        ledger: CSV file (default: ledger.csv beside the study file)
        teacher: NAME=FILE, a teacher's weights, instead of training it
        out: folder to write to (default: the study's)
        wandb: project of Weights & Biases to log the table to, in the study's group
    """
    opened = OpenStudy(report, study, overrides, runs, ledger, *teacher)
    table, console = opened.table(), Console(highlight=False)
    if console.is_terminal:
        console.print(Markdown(markdown(table)))
    else:  # a pipe or a file gets the Markdown itself
        print(markdown(table))
    for path in write(table, out or opened.study.folder):
        print(path)
    if wandb:
        log_table(table, wandb, opened.folder)
