"""A study's table as Markdown, as CSV and as a figure."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kdlab.studies.columns import CELL_COLUMNS, EXPORTED, spread_text
from kdlab.studies.files import write_text
from kdlab.studies.study import Network
from kdlab.studies.tables import Entry, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BEGIN, END = "<!-- kdlab report: begin -->", "<!-- kdlab report: end -->"


def markdown(table: Table) -> str:
    """Return the table in Markdown: one part for each pair, and an overview where there are several."""
    study = table.study
    lines = [
        f"Top-1 accuracy on the test set in %, after the last epoch: mean ± standard deviation over n seeds. "
        f"The best epoch was chosen on the validation set, by default the test set itself: it is shown, and counts for "
        f"nothing. Δ: the difference from {study.baseline} with its 95 % interval (Welch). "
        f"Agreement with the teacher and expected calibration error (ECE, 15 bins) in %.",
        "",
    ]
    if study.note:
        lines += [study.note.strip(), ""]
    if len(study.pairs) > 1:
        lines += [*_overview(table), ""]
    for pair in study.pairs:
        if entries := [entry for entry in table.entries if entry.pair == pair.name]:
            lines += [f"### {pair.name}", "", *_teachers(table, pair.roles), *_part(study.baseline, entries), ""]
    lines += [f"- {note}" for note in table.notes]
    return "\n".join(lines).rstrip() + "\n"


def table_csv(table: Table) -> str:
    """Return the table as CSV, one line for each cell, numbers with every digit."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(column.name for column in EXPORTED)
    writer.writerows([column.value(entry) for column in EXPORTED] for entry in table.entries)
    return text.getvalue()


def figure(table: Table) -> Figure:
    """Draw a panel for each pair: every seed a dot, the mean a bar, published values a cross."""
    from matplotlib.figure import Figure

    measured = {entry.pair for entry in table.entries if entry.last is not None}
    pairs = [pair.name for pair in table.study.pairs if pair.name in measured]
    across = min(3, max(1, len(pairs)))
    down = max(1, -(-len(pairs) // across))
    methods = len(table.study.methods)
    drawn = Figure(figsize=(4.4 * across + 0.6, (0.3 * methods + 1.1) * down), layout="constrained")
    axes = drawn.subplots(down, across, squeeze=False).flatten()
    for axis, pair in zip(axes, pairs, strict=False):
        entries = [entry for entry in table.entries if entry.pair == pair][::-1]
        for row, entry in enumerate(entries):
            axis.plot(entry.values, [row] * len(entry.values), "o", color="tab:blue", alpha=0.45, markersize=4)
            if entry.last is not None:
                axis.plot(entry.last.mean, row, "|", color="tab:blue", markersize=13, markeredgewidth=2)
            if entry.published is not None:
                axis.plot(entry.published.top1, row, "x", color="tab:red", markersize=6)
        plain = next((entry.last for entry in entries if entry.method == table.study.baseline), None)
        if plain is not None:
            axis.axvline(plain.mean, color="0.8", linewidth=1, zorder=0)
        axis.set_yticks(range(len(entries)), [entry.method for entry in entries], fontsize=8)
        axis.set_title(pair, fontsize=9)
        axis.set_xlabel("top-1 %", fontsize=8)
        axis.tick_params(axis="x", labelsize=8)
    for axis in axes[len(pairs) :]:
        axis.set_axis_off()
    return drawn


def write(table: Table, out: Path) -> list[Path]:
    """Write ``report.md``, ``report.csv`` and ``report.png``, and the table between the marks of a ``README.md``."""
    paths = [out / "report.md", out / "report.csv", out / "report.png"]
    text = markdown(table)
    write_text(paths[0], f"# {table.study.title or table.study.name}\n\n{text}")
    write_text(paths[1], table_csv(table))
    figure(table).savefig(paths[2], dpi=120, metadata={"Software": None})
    readme = out / "README.md"
    content = readme.read_bytes().decode() if readme.is_file() else ""  # keeps line ends
    before, _, rest = content.partition(BEGIN)
    if END in rest:
        write_text(readme, f"{before}{BEGIN}\n{text}{END}{rest.partition(END)[2]}")
        paths.append(readme)
    return paths


def _part(baseline: str, entries: Sequence[Entry]) -> list[str]:
    hidden = () if any(entry.published for entry in entries) else ("published", "beyond_published")
    columns = [column for column in CELL_COLUMNS if column.heading and column.name not in hidden]
    heads = [column.heading.format(baseline=baseline) for column in columns]
    return _table(heads, ([column.text(entry) for column in columns] for entry in entries))


def _overview(table: Table) -> list[str]:
    study = table.study
    heads = ["method", *(pair.name for pair in study.pairs)]
    heads += [f"ARI of {study.reference}, %"] if study.reference else []
    rows = []
    for method in study.methods:
        cells = [method.name, *(_short(table.entry(pair.name, method.name)) for pair in study.pairs)]
        if study.reference:
            improvement = table.improvements.get(method.name)
            cells.append("" if improvement is None else f"{improvement:.1f}")
        rows.append(cells)
    marked = any(entry.values and not entry.complete for entry in table.entries)
    return [*_table(heads, rows), *(["", "\\* not all seeds yet"] if marked else [])]


def _short(entry: Entry | None) -> str:
    """Return the accuracy of a cell, marked where seeds are missing."""
    if entry is None:
        return "–"
    return spread_text(entry.last) + ("" if entry.complete else "*") if entry.last else ""


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    rule = "|---" + "|---:" * (len(heads) - 1) + "|"
    return [f"| {' | '.join(heads)} |", rule, *(f"| {' | '.join(row)} |" for row in rows)]


def _teachers(table: Table, roles: Mapping[str, Network]) -> list[str]:
    if "teacher" not in roles or (name := roles["teacher"].name) not in table.teachers:
        return []
    return [f"Teacher {name}, trained here: {table.teachers[name]:.2f}.", ""]
