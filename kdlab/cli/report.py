"""``kdlab report``: the table of a study as Markdown, CSV and a figure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markdown import Markdown

from kdlab.cli.reproduce import Parser
from kdlab.studies.render import log_table, markdown, write

DESCRIPTION = """\
Print a study's table and write report.md, report.csv and report.png; a README.md there that has the marks \
<!-- kdlab report: begin --> and <!-- kdlab report: end --> gets the table between them. Cells that were not run are \
empty, and runs of another recipe are left out."""


def run(arguments: Sequence[str]) -> None:
    """Print and write the report."""
    parser = Parser("report", DESCRIPTION, "STUDY [--out FOLDER] [--wandb PROJECT] [--KEY=VALUE ...]")
    parser.add_argument("--out", help="folder to write to (default: the study's)")
    parser.add_argument("--wandb", metavar="PROJECT", help="log the table to Weights & Biases, in the study's group")
    options, opened = parser.open(arguments)
    table, console = opened.table(), Console(highlight=False)
    if console.is_terminal:
        console.print(Markdown(markdown(table)))
    else:  # a pipe or a file gets the Markdown itself
        print(markdown(table))
    for path in write(table, Path(options.out) if options.out else opened.study.folder):
        print(path)
    if options.wandb:
        log_table(table, options.wandb, opened.folder)
