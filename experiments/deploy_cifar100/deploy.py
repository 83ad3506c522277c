"""Export the study's networks in float32 and int8, profile the files side by side, and write the table of the README.

OMP_NUM_THREADS=1 python experiments/deploy_cifar100/deploy.py --data.root=DATA/cifar100 [--runtimes onnx,openvino]

It takes what `kdlab reproduce experiments/deploy_cifar100` left in `runs/deploy_cifar100`; files that are there stay.
Rows of deployed.csv of other runtimes stay too, so runtimes that do not fit into one environment are measured in turn.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from kdlab.cli import main as kdlab
from kdlab.cli.printing import csv_text
from kdlab.export.formats import FORMATS
from kdlab.export.profiling import COLUMNS, PACKAGES
from kdlab.figures.tradeoff import tradeoff
from kdlab.files import write_text
from kdlab.studies.ledger import FINISHED, Ledger
from kdlab.studies.statistics import spread

HERE = Path(__file__).parent
BEGIN, END = "<!-- deploy: begin -->", "<!-- deploy: end -->"
TEACHER, DISTILLED, AWARE = "teacher", "KD", "KD, quantization-aware"
SHOWN = (TEACHER, "alone", DISTILLED, AWARE)
FIELDS = ("method", "seed", "precision", *COLUMNS[1:])
HEADS = ("network", "", "accuracy", "agreement", "MB", "ms, batch 1", "ms, batch 32", "retention", "speed-up, 1", "32")

Row = Mapping[str, str]


class File(NamedTuple):
    """An exported file, which may not be there yet."""

    method: str
    seed: str
    int8: bool
    run: Path
    path: Path


def files_of(ledger: Ledger, runs: Path, format: str) -> list[File]:
    """Return the files of a format: of every network in float32 and int8, of the quantization-aware ones in int8."""
    files = []
    for row in ledger.rows:
        method = row["method"] or TEACHER
        if row["status"] == FINISHED and method in SHOWN:
            (run,) = runs.glob(f"*-{row['run']}")
            for int8 in (False, True) if method != AWARE else (True,):
                path = run / f"student{'.int8' if int8 else ''}{FORMATS[format].suffix}"
                files.append(File(method, row["seed"], int8, run, path))
    return sorted(files, key=lambda file: (SHOWN.index(file.method), file.int8, file.seed))


def measured(files: Sequence[File], format: str, options: Sequence[str], out: Path) -> list[dict[str, str]]:
    """Export what is missing, profile all files in alternating rounds, and return their rows."""
    for file in files:
        if not file.path.exists():
            # Checked on a part here: the profile measures the whole test set. What int8 loses is for the table to show.
            further = ["--int8", "--calibrate=512", "--points=100"] if file.int8 else []
            kdlab(["export", str(file.run), f"--format={format}", "--samples=1000", *further, *options])
    taught = next(file.run for file in files if file.method == DISTILLED)
    paths = [str(file.path) for file in files]
    kdlab(["profile", *paths, f"--data={taught}", f"--out={out}", *options])
    with (out / "profile.csv").open(newline="", encoding="utf-8") as text:
        profiles = list(csv.DictReader(text))
    return [
        {"method": file.method, "seed": file.seed, "precision": "int8" if file.int8 else "fp32", **profile}
        for file, profile in zip(files, profiles, strict=True)
    ]


def means(rows: Iterable[Row], column: str, scale: float = 1.0) -> list[float]:
    """Return a column's values."""
    return [scale * float(row[column]) for row in rows if row[column]]


def average(rows: Sequence[Row], column: str, scale: float = 1.0) -> float:
    """Return the mean of a column over the seeds."""
    values = means(rows, column, scale)
    return sum(values) / len(values)


def groups_of(rows: Sequence[Row]) -> list[list[Row]]:
    """Return the rows of each runtime, method and precision."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["runtime"], row["method"], row["precision"]), []).append(row)
    return list(groups.values())


def table(rows: Sequence[Row]) -> str:
    """Return the table of each runtime in Markdown, and what quantization-aware training gains in it."""
    lines: list[str] = []
    for runtime in dict.fromkeys(row["runtime"] for row in rows):
        inside = [row for row in rows if row["runtime"] == runtime]
        teacher = next(group for group in groups_of(inside) if group[0]["method"] == TEACHER)
        lines += [f"### {runtime}", "", f"| {' | '.join(HEADS)} |", f"|---|---|{'---:|' * (len(HEADS) - 2)}"]
        for group in groups_of(inside):
            times = [(average(group, f"p50_ms_{size}"), average(teacher, f"p50_ms_{size}")) for size in (1, 32)]
            cells = [group[0]["method"], group[0]["precision"]]
            cells += [str(spread(means(group, name, 100))) for name in ("accuracy", "agreement")]
            cells += [f"{average(group, 'bytes', 1e-6):.2f}", *(f"{time:.2f}" for time, _ in times)]
            cells.append(f"{average(group, 'retention', 100):.1f}")
            cells += [f"{reference / time:.2f}" for time, reference in times]
            lines.append(f"| {' | '.join(cells)} |")
        lines += ["", *gains(inside), ""]
    return "\n".join(lines)


def gains(rows: Sequence[Row]) -> list[str]:
    """Return one line: int8 of the quantization-aware student against int8 of the distilled one, seed by seed."""
    by_seed = [
        {row["seed"]: 100 * float(row["accuracy"]) for row in rows if (row["method"], row["precision"]) == kind}
        for kind in ((AWARE, "int8"), (DISTILLED, "int8"), (DISTILLED, "fp32"))
    ]
    aware, after, exact = by_seed
    seeds = sorted(aware.keys() & after.keys())
    if not seeds:
        return []
    gained = ", ".join(f"{aware[seed] - after[seed]:+.2f}" for seed in seeds)
    lost = ", ".join(f"{after[seed] - exact[seed]:+.2f}" for seed in seeds)
    return [
        f"Points of accuracy, seeds {', '.join(seeds)}: int8 after training against fp32 of the same student {lost}; "
        f"quantization-aware training against int8 after training {gained}."
    ]


def shown(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the means over the seeds for the figure."""
    columns = ("accuracy", "p50_ms_1", "bytes")
    return [
        {
            "name": f"{group[0]['method']}, {group[0]['precision']}",
            "runtime": group[0]["runtime"],
            **{name: average(group, name) for name in columns},
        }
        for group in groups_of(rows)
    ]


def main() -> None:
    """Measure, and write deployed.csv, deployed.png and the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runtimes", default="onnx", help="formats with commas between them (%(default)s)")
    parser.add_argument("--runs", type=Path, default=Path("runs/deploy_cifar100"))
    arguments, options = parser.parse_known_args()
    path = HERE / "deployed.csv"
    rows: list[dict[str, str]] = []
    if path.exists():
        with path.open(newline="", encoding="utf-8") as text:
            rows = list(csv.DictReader(text))
    for format in arguments.runtimes.split(","):
        out = arguments.runs / f"profile-{format}"
        files = files_of(Ledger(HERE / "ledger.csv"), arguments.runs, format)
        rows = [row for row in rows if not row["runtime"].startswith(f"{PACKAGES[format]} ")]
        rows += measured(files, format, options, out)
        write_text(path, csv_text([FIELDS, *([row[name] for name in FIELDS] for row in rows)]))
    tradeoff(shown(rows)).savefig(HERE / "deployed.png", dpi=120, metadata={"Software": None})
    readme = HERE / "README.md"
    before, _, rest = readme.read_text(encoding="utf-8").partition(BEGIN)
    profiles = {format: arguments.runs / f"profile-{format}" / "profile.md" for format in FORMATS}
    texts = {name: file.read_text(encoding="utf-8") for name, file in profiles.items() if file.exists()}
    notes = [f"- {PACKAGES[name]}: {text.strip().splitlines()[-1]}\n" for name, text in texts.items()]
    text = f"{table(rows)}\n{''.join(notes)}"
    write_text(readme, f"{before}{BEGIN}\n{text}{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()
