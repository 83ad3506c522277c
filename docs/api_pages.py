"""Pages of the API: every public name once, by package."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any, NamedTuple


class Page(NamedTuple):
    """One page: packages whose ``__all__`` it lists, and names of modules that have none."""

    title: str
    packages: Sequence[str] = ()
    names: Sequence[str] = ()


PAGES = {
    "kdlab": Page("kdlab", (), ("kdlab.Distiller", "kdlab.CoTrainer", "kdlab.Knowledge")),
    "losses": Page(
        "kdlab.losses",
        ("kdlab.losses", "kdlab.losses.tokens"),
        ("kdlab.losses.context.Context", "kdlab.losses.lazy.Lazy", "kdlab.losses.functional"),
    ),
    "teaching": Page("kdlab.teaching", ("kdlab.teaching",)),
    "members": Page("kdlab.members", ("kdlab.members",), ("kdlab.members.copies.Copy",)),
    "models": Page("kdlab.models", ("kdlab.models",)),
    "data": Page("kdlab.data", ("kdlab.data",), ("kdlab.tokenization",)),
    "figures": Page("kdlab.figures", ("kdlab.figures",)),
    "outputs": Page("kdlab.outputs", ("kdlab.outputs",), ("kdlab.outputs.task_format", "kdlab.outputs.factored")),
    "training": Page(
        "Modules, schedules, optimizers, metrics, errors",
        ("kdlab.modules", "kdlab.optimizers", "kdlab.export"),
        (
            "kdlab.modules.dry_run.dry_run",
            "kdlab.schedules",
            "kdlab.metrics",
            "kdlab.errors",
            "kdlab.export.student",
            "kdlab.export.deployed",
            "kdlab.export.parity",
        ),
    ),
}


def pages() -> dict[str, str]:
    """Return the pages as Markdown, by their path in the documentation."""
    listed: list[Any] = [_object(name) for name in PAGES["kdlab"].names]
    made = {}
    for path, page in PAGES.items():
        lines = [f"# {page.title}"]
        for package in page.packages:
            lines.append(f"::: {package}\n    options: {{members: false, show_root_heading: false, heading_level: 1}}")
            for name in import_module(package).__all__:
                value = _object(f"{package}.{name}")
                if not any(value is other for other in listed):
                    listed.append(value)
                    lines.append(f"::: {package}.{name}")
        made[f"api/{path}.md"] = "\n\n".join([*lines, *(f"::: {name}" for name in page.names)]) + "\n"
    return made


def navigation() -> list[dict[str, str]]:
    """Return the pages for the navigation."""
    return [{page.title: f"api/{path}.md"} for path, page in PAGES.items()]


def _object(path: str) -> Any:
    package, _, name = path.rpartition(".")
    return getattr(import_module(package), name)
