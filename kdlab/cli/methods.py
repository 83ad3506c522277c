"""``kdlab methods``: losses, ensembles of teachers, optimizers and ways to teach, read off the code."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Column, Table

from kdlab.errors import InputError

HEADER = ("class", "method", "paper", "family", "needs", "weight")
WAYS_HEADER = ("teaching", "method", "paper", "configs/recipes/")
TEACHING = "teaching"
FAMILIES = ("response", "feature", "relation", "tokens", "plug-in", "teachers", "optimizer")


class Entry(NamedTuple):
    """A row of the table of methods; its fields are those of ``HEADER``."""

    name: str
    method: str
    paper: str
    family: str
    needs: str = ""
    weight: str = ""


def methods(markdown: bool = False, family: str | None = None) -> None:
    """List the methods: what each compares, what it needs, and its weight.

    The weight is that of the CIFAR-100 recipe beside weight 1 on the labels (unless its docstring says otherwise).

    Args:
        markdown: print Markdown tables, as in the README
        family: list only this family, such as relation
    """
    families = sorted({TEACHING, *FAMILIES})
    if family is not None and family not in families:
        raise InputError(f"There is no family {family!r}; the families are {', '.join(families)}.")
    chosen = [row for row in entries() if family in (None, row.family)]
    tables: dict[Sequence[str], Sequence[Sequence[str]]] = {HEADER: chosen, WAYS_HEADER: ways()}
    if family is not None:
        del tables[HEADER if family == TEACHING else WAYS_HEADER]
    if markdown:
        sys.stdout.write("\n".join(markdown_table(rows, header) for header, rows in tables.items()))
        return
    console = Console(width=None if sys.stdout.isatty() else 160)
    for (first, *others), rows in tables.items():
        table = Table(Column(first, no_wrap=True), *others)
        for row in rows:
            table.add_row(*row)
        console.print(table)


def entries() -> list[Entry]:
    """Return the rows of all losses, ensembles of teachers and optimizers, by family and name."""
    from kdlab import losses, optimizers, teaching

    rows = [_loss(getattr(losses, name)) for name in losses.__all__]
    kinds = [getattr(teaching, name) for name in teaching.__all__]
    rows += [Entry(*_described(kind), "teachers") for kind in kinds if issubclass(kind, teaching.Ensemble)]
    rows.append(Entry(*_described(optimizers.DOT), "optimizer"))
    return sorted(rows, key=lambda row: (FAMILIES.index(row.family), row.name.lower()))


def ways() -> list[tuple[str, str, str, str]]:
    """Return class, method, paper and recipes of every way to teach that a class in ``kdlab.teaching`` declares."""
    from kdlab import teaching

    kinds = [getattr(teaching, name) for name in teaching.__all__]
    return [
        (kind.__name__, way.method, way.paper, ", ".join(way.recipes))
        for kind in kinds
        for way in vars(kind).get("ways", ())  # not those of the class that it extends
    ]


def markdown_table(rows: Sequence[Sequence[str]], header: Sequence[str] = HEADER) -> str:
    """Return the rows as a Markdown table, class names as code."""
    lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    lines += ["| " + " | ".join([f"`{row[0]}`", *row[1:]]) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _loss(kind: Any) -> Entry:
    family = "plug-in" if "loss" in inspect.signature(kind).parameters else kind.__module__.split(".")[2]
    loss = kind()
    views = f"view {', '.join(map(repr, getattr(loss, 'views', ())))}"
    needs = [views if need == "views" else need.replace("_", " ") for need in loss.needs]
    return Entry(*_described(kind), family, ", ".join(needs), f"{kind.recipe_weight:g}")


def _described(kind: Any) -> tuple[str, str, str]:
    """Return class, method and paper: the class' own ``method`` and ``paper``, else those of its file's first line."""
    first = (inspect.getdoc(inspect.getmodule(kind)) or "").split("\n")[0]
    match = re.fullmatch(r"(?P<method>[^:]+):.*\((?P<paper>[^()]*\d{4}[^()]*)\)\.", first)
    words = {**(match.groupdict() if match else {}), **vars(kind)}
    if words.get("method") is None or words.get("paper") is None:
        raise ValueError(f"{kind.__name__} needs a first line 'method: what it does (authors year).', not {first!r}")
    return kind.__name__, str(words["method"]), str(words["paper"])
