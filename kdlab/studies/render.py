"""A study's table as Markdown, as CSV and as a figure."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from kdlab.studies.files import write_text
from kdlab.studies.statistics import Difference, Spread
from kdlab.studies.study import Network
from kdlab.studies.tables import Entry, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BEGIN, END = "<!-- kdlab report: begin -->", "<!-- kdlab report: end -->"
COLUMNS = (
    *("pair", "method", "seeds", "of", "top1", "std", "best", "gain", "gain_low", "gain_high", "published"),
    *("beyond_published", "agreement", "ece", "minutes", "source"),
)


def markdown(found: Table) -> str:
    """The table in Markdown: one part for each pair, and an overview where there are several."""
    study = found.study
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
        lines += [*_overview(found), ""]
    for pair in study.pairs:
        entries = [each for each in found.entries if each.pair == pair.name]
        if entries:
            lines += [f"### {pair.name}", "", *_teachers(found, pair.roles), *_part(study.baseline, entries), ""]
    lines += [f"- {note}" for note in found.notes]
    return "\n".join(lines).rstrip() + "\n"


def table_csv(found: Table) -> str:
    """The table as CSV, one line a cell, numbers with every digit."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for each in found.entries:
        last, gain = each.last, each.gain
        writer.writerow(
            "" if value is None else value
            for value in (
                *(each.pair, each.method, len(each.values), each.wanted),
                *((last.mean, last.std) if last else (None, None)),
                each.best and each.best.mean,
                *(gain or (None, None, None)),
                each.published and each.published.top1,
                each.beyond,
                each.agreement and each.agreement.mean,
                each.ece and each.ece.mean,
                each.minutes and each.minutes.mean,
                each.published and each.published.source,
            )
        )
    return text.getvalue()


def figure(found: Table) -> Figure:
    """A panel for each pair: every seed a dot, the mean a bar, published values a cross."""
    from matplotlib.figure import Figure

    measured = {each.pair for each in found.entries if each.last is not None}
    pairs = [pair.name for pair in found.study.pairs if pair.name in measured]
    across = min(3, max(1, len(pairs)))
    down = max(1, -(-len(pairs) // across))
    methods = len(found.study.methods)
    drawn = Figure(figsize=(4.4 * across + 0.6, (0.3 * methods + 1.1) * down), layout="constrained")
    axes = drawn.subplots(down, across, squeeze=False).flatten()
    for axis, pair in zip(axes, pairs, strict=False):
        entries = [each for each in found.entries if each.pair == pair][::-1]
        for row, each in enumerate(entries):
            axis.plot(each.values, [row] * len(each.values), "o", color="tab:blue", alpha=0.45, markersize=4)
            if each.last is not None:
                axis.plot(each.last.mean, row, "|", color="tab:blue", markersize=13, markeredgewidth=2)
            if each.published is not None:
                axis.plot(each.published.top1, row, "x", color="tab:red", markersize=6)
        plain = next((each.last for each in entries if each.method == found.study.baseline), None)
        if plain is not None:
            axis.axvline(plain.mean, color="0.8", linewidth=1, zorder=0)
        axis.set_yticks(range(len(entries)), [each.method for each in entries], fontsize=8)
        axis.set_title(pair, fontsize=9)
        axis.set_xlabel("top-1 %", fontsize=8)
        axis.tick_params(axis="x", labelsize=8)
    for axis in axes[len(pairs) :]:
        axis.set_axis_off()
    return drawn


def write(found: Table, out: Path) -> list[Path]:
    """Write ``report.md``, ``report.csv`` and ``report.png``, and the table between the marks of a ``README.md``."""
    paths = [out / "report.md", out / "report.csv", out / "report.png"]
    text = markdown(found)
    heading = f"# {found.study.title or found.study.name}\n\n"
    write_text(paths[0], heading + text)
    write_text(paths[1], table_csv(found))
    figure(found).savefig(paths[2], dpi=120, metadata={"Software": None})
    readme = out / "README.md"
    said = readme.read_bytes().decode() if readme.is_file() else ""  # line ends as they are
    before, _, rest = said.partition(BEGIN)
    if END in rest:
        after = rest.partition(END)[2]
        write_text(readme, f"{before}{BEGIN}\n{text}{END}{after}")
        paths.append(readme)
    return paths


def _part(baseline: str, entries: list[Entry]) -> list[str]:
    published = any(each.published for each in entries)
    heads = ["method", "top-1", "n", "best epoch", f"Δ {baseline}"]
    heads += ["published", "Δ published"] if published else []
    heads += ["agreement", "ECE", "minutes"]
    lines = ["| " + " | ".join(heads) + " |", "|---" + "|---:" * (len(heads) - 1) + "|"]
    for each in entries:
        cells = [each.method, _spread(each.last), _seeds(each), _mean(each.best), _difference(each.gain)]
        if published:
            cells += [f"{each.published.top1:.2f}" if each.published else "", _signed(each.beyond)]
        cells += [
            _mean(each.agreement),
            _mean(each.ece),
            _mean(each.minutes, 1 if each.minutes and each.minutes.mean >= 1 else 2),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _overview(found: Table) -> list[str]:
    study = found.study
    heads = ["method", *(pair.name for pair in study.pairs)]
    heads += [f"ARI of {study.reference}, %"] if study.reference else []
    lines = ["| " + " | ".join(heads) + " |", "|---" + "|---:" * (len(heads) - 1) + "|"]
    for method in study.methods:
        cells = [method.name]
        for pair in study.pairs:
            entry = found.entry(pair.name, method.name)
            cells.append(_spread(entry.last) + ("" if not entry.values or entry.complete else "*") if entry else "–")
        if study.reference:
            improvement = found.improvements.get(method.name)
            cells.append("" if improvement is None else f"{improvement:.1f}")
        lines.append("| " + " | ".join(cells) + " |")
    marked = any(each.values and not each.complete for each in found.entries)
    return [*lines, "", "\\* not all seeds yet"] if marked else lines


def _teachers(found: Table, roles: Mapping[str, Network]) -> list[str]:
    if "teacher" not in roles or (name := roles["teacher"].name) not in found.teachers:
        return []
    return [f"Teacher {name}, trained here: {found.teachers[name]:.2f}.", ""]


def _spread(value: Spread | None) -> str:
    if value is None:
        return ""
    return f"{value.mean:.2f}" + (f" ± {value.std:.2f}" if value.std is not None else "")


def _mean(value: Spread | None, digits: int = 2) -> str:
    return "" if value is None else f"{value.mean:.{digits}f}"


def _seeds(each: Entry) -> str:
    return "" if not each.values else str(each.wanted) if each.complete else f"{len(each.values)} of {each.wanted}"


def _signed(value: float | None) -> str:
    return "" if value is None else f"{value:+.2f}"


def _difference(value: Difference | None) -> str:
    if value is None:
        return ""
    interval = "" if value.low is None or value.high is None else f" [{value.low:+.2f}, {value.high:+.2f}]"
    return f"{value.value:+.2f}{interval}"
