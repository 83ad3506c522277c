"""Tables for the terminal and CSV text."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Column, Table


def titled_table(
    title: str, columns: Sequence[str], rows: Iterable[Iterable[str]], numbers: Sequence[str] = ()
) -> Table:
    """Return a table with a frame; the columns in ``numbers`` are right-aligned."""
    headers = [Column(name, justify="right" if name in numbers else "left", overflow="fold") for name in columns]
    table = Table(*headers, title=title, title_justify="left")
    for row in rows:
        table.add_row(*row)
    return table


def number_table(columns: Sequence[str], caption: str) -> Table:
    """Return an empty table without a frame, with numbers in all columns but the first."""
    headers = [Column(name, justify="right" if place else "left", no_wrap=True) for place, name in enumerate(columns)]
    return Table(*headers, box=SIMPLE_HEAD, header_style="bold", padding=(0, 1, 0, 0), caption=caption)


def csv_text(rows: Iterable[Iterable[Any]]) -> str:
    """Return rows as CSV; floats keep every bit and ``None`` is empty."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
