"""The table of the ledger, between the marks of the README."""

from __future__ import annotations

import csv
import statistics
from pathlib import Path

from kdlab.studies.render import BEGIN, END

MEASURES = tuple(f"{part}_{name}" for part in ("sst2", "library") for name in ("top1", "top10", "spearman"))
HEADS = (
    *("network", "n", "SST-2: nearest", "ten nearest", "Spearman", "library: nearest", "ten nearest", "Spearman"),
    *("M parameters", "MB", "ms a sentence", "minutes"),
)


def table(rows: list[dict[str, str]]) -> str:
    """Return the table in Markdown: a line for each network before and after distillation, means over the seeds."""
    lines = [f"| {' | '.join(HEADS)} |", "|---" + "|---:" * (len(HEADS) - 1) + "|"]
    for network, distilled in dict.fromkeys((row["network"], row["distilled"]) for row in rows):
        chosen = [row for row in rows if (row["network"], row["distilled"]) == (network, distilled)]
        name = f"{network}, distilled" if distilled == "1" else f"{network}, teacher" if not lines[2:] else network
        cells = [name, str(len(chosen))]
        for column in MEASURES:
            values = [float(row[column]) for row in chosen]
            spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.3f}{spread}")
        means = {
            name: statistics.mean(float(row[name]) for row in chosen)
            for name in ("parameters", "megabytes", "latency", "seconds")
        }
        minutes = f"{means['seconds'] / 60:.1f}" if distilled == "1" else ""
        cells += [f"{means['parameters'] / 1e6:.2f}", f"{means['megabytes']:.1f}", f"{1e3 * means['latency']:.2f}"]
        lines.append(f"| {' | '.join([*cells, minutes])} |")
    lines.append("")
    for column, what in (("device", "On"), ("torch", "torch"), ("commit", "kdlab at commit")):
        lines.append(f"- {what} {', '.join(sorted({row[column] for row in rows}))}.")
    return "\n".join(lines) + "\n"


def write(ledger: Path, readme: Path) -> None:
    """Write the table between the marks of the README."""
    with ledger.open(newline="") as file:
        text = table(list(csv.DictReader(file)))
    before, _, rest = readme.read_text(encoding="utf-8").partition(BEGIN)
    readme.write_text(f"{before}{BEGIN}\n{text}{END}{rest.partition(END)[2]}", encoding="utf-8")
    print(text)
