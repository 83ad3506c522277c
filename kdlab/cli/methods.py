"""``kdlab methods``: every loss, way to weigh several teachers and optimiser, as its own code describes it."""

from __future__ import annotations

import argparse
import inspect
import re
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from kdlab.errors import InputError

HEADER = ("class", "method", "paper", "family", "needs", "weight")


class Entry(NamedTuple):
    """One row of the table."""

    name: str
    method: str
    paper: str
    family: str
    needs: str
    weight: str


def run(arguments: Sequence[str]) -> None:
    """Parse the arguments and print the table."""
    parser = argparse.ArgumentParser(
        prog="kdlab methods",
        description="List the methods: what each compares, what it needs, and its weight in the CIFAR-100 recipe "
        "beside weight 1 on the labels (unless its docstring says otherwise).",
    )
    parser.add_argument("--markdown", action="store_true", help="as a Markdown table, as in the README")
    parser.add_argument("--family", help="only this family, e.g. relation")
    given = parser.parse_args(list(arguments))
    rows = entries()
    if given.family:
        families = sorted({row.family for row in rows})
        if given.family not in families:
            raise InputError(f"There is no family {given.family!r}; the families are {', '.join(families)}.")
        rows = [row for row in rows if row.family == given.family]
    if given.markdown:
        sys.stdout.write(markdown(rows))
        return
    table = Table()
    for column in HEADER:
        table.add_column(column, no_wrap=column == "class")
    for row in rows:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def entries() -> list[Entry]:
    """The rows, by family and name, read off the code."""
    from kdlab import losses, optimizers, teaching

    rows = [_loss(getattr(losses, name)) for name in losses.__all__]
    ensembles = (getattr(teaching, name) for name in teaching.__all__)
    rows += [_other(each, "teachers") for each in ensembles if issubclass(each, teaching.Ensemble)]
    rows.append(_other(optimizers.DOT, "optimiser"))
    order = ["response", "feature", "relation", "plug-in", "teachers", "optimiser"]
    return sorted(rows, key=lambda row: (order.index(row.family), row.name.lower()))


def markdown(rows: Sequence[Entry]) -> str:
    """The rows as a Markdown table."""
    lines = ["| " + " | ".join(HEADER) + " |", "|---" * len(HEADER) + "|"]
    lines += ["| " + " | ".join([f"`{row.name}`", *row[1:]]) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _loss(kind: Any) -> Entry:
    parameters = inspect.signature(kind).parameters
    family = "plug-in" if "loss" in parameters else kind.__module__.split(".")[2]
    loss = kind()
    needs = [need.replace("_", " ") for need in loss.needs]
    if "views" in loss.needs:
        needs[needs.index("views")] = f"view {', '.join(map(repr, loss.views))}"
    return Entry(*_described(kind), family, ", ".join(needs), f"{kind.recipe_weight:g}")


def _other(kind: Any, family: str) -> Entry:
    return Entry(*_described(kind), family, "", "")


def _described(kind: Any) -> tuple[str, str, str]:
    """Class, method and paper: the class' own ``method`` and ``paper``, else as its file's first line has them."""
    first = (inspect.getdoc(inspect.getmodule(kind)) or "").split("\n")[0]
    found = re.fullmatch(r"(?P<method>[^:]+):.*\((?P<paper>[^()]*\d{4}[^()]*)\)\.", first)
    given = vars(kind)
    method = given.get("method", found and found["method"])
    paper = given.get("paper", found and found["paper"])
    if method is None or paper is None:
        raise ValueError(f"{kind.__name__} needs a first line 'method: what it does (authors year).', not {first!r}")
    return kind.__name__, str(method), str(paper)
