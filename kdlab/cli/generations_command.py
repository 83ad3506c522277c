"""``kdlab generations``: a student, and again the same one taught by the one before (Furlanello et al. 2018)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from kdlab.cli.printing import csv_text, number_table
from kdlab.files import write_text
from kdlab.studies.generations import STUDENT, Row, train_generations


def generations(overrides: list[str], count: int = 3, out: Path | None = None) -> None:
    """Train the student of a config, then the same recipe taught by the network before, and so on.

    The first generation learns from the labels alone; each later one has the next seed and is taught by the network
    before as model.knowledge and model.task_weight say. At the end every generation, and the mean of the probabilities
    of the first 2, 3, ..., is evaluated on the test set. The last generation is the one to deploy.

    All other options are those of kdlab fit, such as -c CONFIG. seed_everything rises by 1 with each generation;
    data.seed, which may choose the training set, does not. Called again with the same --out, a run continues.

    Args:
        overrides: options of ``kdlab fit``
        count: generations, the first included
        out: folder to create or to continue in (default: runs/generations_N, the first N that is free)
    """
    numbered = (Path(f"runs/generations_{number}") for number in itertools.count())
    out = out or next(path for path in numbered if not path.exists())
    rows = train_generations(overrides, count, out)
    Console(highlight=False).print(table(rows))
    header = ("network", "members", "test_accuracy", "agreement_with_previous", "ece")
    write_text(out / "generations.csv", csv_text([header, *rows]))
    last = out / f"generation_{count - 1}" / STUDENT
    print(f"The last generation is deployed, which was decided before the training: {last}")


def table(rows: Sequence[Row]) -> Table:
    """Return the rows for a terminal."""
    deployed = [row.name for row in rows if row.members == 1][-1]
    caption = f"{deployed} is deployed; together: the mean of their probabilities"
    printed = number_table(("", "test\naccuracy %", "agreement with\nthe one before %", "ECE %"), caption)
    for row in rows:
        cells = ["" if value is None else f"{100 * value:.2f}" for value in row[2:]]
        printed.add_row(row.name, *cells, style="bold" if row.name == deployed else "")
    return printed
