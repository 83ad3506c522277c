"""A study's table as Markdown, as CSV, as a figure and in Weights & Biases."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdlab.files import write_text
from kdlab.studies.columns import SHOWN
from kdlab.studies.study import Network
from kdlab.studies.tables import Entry, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BEGIN, END = "<!-- kdlab report: begin -->", "<!-- kdlab report: end -->"
FURTHER = [shown for shown in SHOWN.values() if shown.name not in ("top1", "best")]
"""Columns after those of the accuracy; each where a cell of the pair has a value."""


def markdown(table: Table) -> str:
    """Return the table in Markdown: one part for each pair, and an overview where there are several."""
    study = table.study
    lines = [
        f"Top-1 accuracy on the test set in %, after the last epoch: mean ± standard deviation over n seeds. "
        f"The best epoch was chosen on the validation set, by default the test set itself: it is shown, and counts for "
        f"nothing. Δ: the difference from {study.baseline} with its 95 % interval (Welch). "
        f"Retention: accuracy over the teacher's. Retention, agreement with the teacher and expected calibration error "
        f"(ECE, 15 bins) in %.",
        "",
    ]
    if study.note:
        lines += [study.note.strip(), ""]
    if len(study.pairs) > 1:
        lines += [*_overview(table), ""]
    for pair in study.pairs:
        if entries := [entry for entry in table.entries if entry.pair == pair.name]:
            lines += [f"### {pair.name}", ""]
            if (teacher := pair.roles.get("teacher")) and teacher.name in table.teachers:
                lines += [_teacher(table, teacher), ""]
            lines += [*_part(table, entries), ""]
    lines += [f"- {note}" for note in table.notes]
    return "\n".join(lines).rstrip() + "\n"


def row(entry: Entry) -> dict[str, Any]:
    """Return a cell's values for CSV and W&B, with every digit."""
    means = {shown.name: value.mean if (value := entry.spreads[shown.name]) else None for shown in SHOWN.values()}
    low, high = (entry.gain.low, entry.gain.high) if entry.gain else (None, None)
    return {
        "pair": entry.pair,
        "method": entry.method,
        "seeds": len(entry.values),
        "of": entry.wanted,
        "top1": means.pop("top1"),
        "std": entry.last.std if entry.last else None,
        "best": means.pop("best"),
        "gain": entry.gain.value if entry.gain else None,
        "gain_low": low,
        "gain_high": high,
        "published": entry.published.top1 if entry.published else None,
        "beyond_published": entry.beyond,
        **means,
        "source": entry.published.source if entry.published else None,
    }


def table_csv(table: Table) -> str:
    """Return the table as CSV, one line for each cell."""
    rows, text = [row(entry) for entry in table.entries], io.StringIO()
    writer = csv.DictWriter(text, rows[0] if rows else (), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def figure(table: Table) -> Figure:
    """Draw a panel for each pair: every seed a dot, the mean a bar, published values a cross."""
    from matplotlib.figure import Figure

    measured = {entry.pair for entry in table.entries if entry.last is not None}
    pairs = [pair.name for pair in table.study.pairs if pair.name in measured]
    across = min(3, max(1, len(pairs)))
    down = max(1, -(-len(pairs) // across))
    size = 4.4 * across + 0.6, (0.3 * len(table.study.methods) + 1.1) * down
    drawn = Figure(figsize=size, layout="constrained")
    axes = drawn.subplots(down, across, squeeze=False).flatten()
    for axis, pair in zip(axes, pairs, strict=False):
        entries = [entry for entry in table.entries if entry.pair == pair][::-1]
        for height, entry in enumerate(entries):
            axis.plot(entry.values, [height] * len(entry.values), "o", color="tab:blue", alpha=0.45, markersize=4)
            if entry.last is not None:
                axis.plot(entry.last.mean, height, "|", color="tab:blue", markersize=13, markeredgewidth=2)
            if entry.published is not None:
                axis.plot(entry.published.top1, height, "x", color="tab:red", markersize=6)
            if entry.last is not None and entry.method == table.study.baseline:
                axis.axvline(entry.last.mean, color="0.8", linewidth=1, zorder=0)
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


def log_table(table: Table, project: str, folder: Path) -> None:
    """Log table and figure to a Weights & Biases project, in the study's group; the client's files go to ``folder``."""
    import wandb

    folder.mkdir(parents=True, exist_ok=True)
    name, rows = table.study.name, [row(entry) for entry in table.entries]
    place = str(folder.resolve())
    run = wandb.init(project=project, group=name, job_type="report", name=f"{name} report", dir=place)
    cells = wandb.Table(columns=list(rows[0]), data=[list(values.values()) for values in rows])
    run.log({"table": cells, "figure": wandb.Image(figure(table))})
    run.finish()


def _teacher(table: Table, teacher: Network) -> str:
    """Describe a teacher: accuracy, those of an ensemble's members, and what it costs."""
    members = [table.teachers[one.name] for one in teacher.members if one.name in table.teachers]
    alone = f" (its members alone: {', '.join(f'{accuracy:.2f}' for accuracy in members)})" if members else ""
    shown = [(SHOWN[name], value) for name, value in table.costs.get(teacher.name, {}).items()]
    costs = "".join(f", {column.text(value)} {column.heading}" for column, value in shown)
    return f"Teacher {teacher.name}, trained here: {table.teachers[teacher.name]:.2f}{alone}{costs}."


def _part(table: Table, entries: Sequence[Entry]) -> list[str]:
    published = any(entry.published for entry in entries)
    retained = any(table.retention(entry) for entry in entries)
    further = [shown for shown in FURTHER if any(entry.spreads[shown.name] for entry in entries)]
    heads = ["method", "top-1", "n", "best epoch", f"Δ {table.study.baseline}"]
    heads += ["published", "Δ published"] if published else []
    heads += ["retention"] if retained else []
    rows = []
    for entry in entries:
        done, best = len(entry.values), entry.spreads["best"]
        seeds = "" if not done else str(done) if entry.complete else f"{done} of {entry.wanted}"
        cells = [entry.method, str(entry.last or ""), seeds, f"{best.mean:.2f}" if best else "", str(entry.gain or "")]
        if published:
            cells.append(f"{entry.published.top1:.2f}" if entry.published else "")
            cells.append("" if entry.beyond is None else f"{entry.beyond:+.2f}")
        if retained:
            cells.append("" if (share := table.retention(entry)) is None else f"{share:.1f}")
        values = [(shown, entry.spreads[shown.name]) for shown in further]
        rows.append([*cells, *(shown.text(value.mean) if value else "" for shown, value in values)])
    return _markdown_table([*heads, *(shown.heading for shown in further)], rows)


def _overview(table: Table) -> list[str]:
    study, rows = table.study, []
    heads = ["method", *(pair.name for pair in study.pairs)]
    heads += [f"ARI of {study.reference}, %"] if study.reference else []
    for method in study.methods:
        entries = [table.entry(pair.name, method.name) for pair in study.pairs]
        marks = ["*" if entry and entry.values and not entry.complete else "" for entry in entries]
        cells = [str(entry.last or "") if entry else "–" for entry in entries]
        rows.append([method.name, *map("".join, zip(cells, marks, strict=True))])
        if study.reference:
            improvement = table.improvements.get(method.name)
            rows[-1].append("" if improvement is None else f"{improvement:.1f}")
    marked = any(entry.values and not entry.complete for entry in table.entries)
    return [*_markdown_table(heads, rows), *(["", "\\* not all seeds yet"] if marked else [])]


def _markdown_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    rule = "|---" + "|---:" * (len(heads) - 1) + "|"
    return [f"| {' | '.join(heads)} |", rule, *(f"| {' | '.join(cells)} |" for cells in rows)]
