"""Print the tables of the study from its ledger, as Markdown.

python experiments/label_free_cifar100/report.py [LEDGER]
"""

from __future__ import annotations

import csv
import statistics
import sys
from collections import defaultdict
from pathlib import Path

NETWORKS = {
    "teacher_published": "teacher: published ResNet-56 (CIFAR-10)",
    "teacher_own": "teacher: own ResNet-14 (CIFAR-10 JPEGs)",
    "label_free": "student, no labels, both teachers",
    "with_labels": "student, labels and both teachers",
    "supervised": "student, labels alone",
    "random": "student, random weights",
}
Numbers = dict[tuple[str, str, str], list[float]]


def numbers(path: Path) -> Numbers:
    """Return the values of all seeds by network, data and metric."""
    values: Numbers = defaultdict(list)
    with path.open() as file:
        for row in csv.DictReader(file):
            values[row["network"], row["data"], row["metric"]].append(float(row["value"]))
    return values


def cell(values: list[float]) -> str:
    """Return mean and standard deviation in percent, and how many seeds where they are not three."""
    if not values:
        return ""
    mean = f"{100 * statistics.mean(values):.2f}"
    if len(values) == 1:
        return mean
    spread = f"{mean} ± {100 * statistics.stdev(values):.2f}"
    return spread if len(values) == 3 else f"{spread} (n={len(values)})"


def table(values: Numbers, columns: list[tuple[str, str, str]], networks: list[str]) -> str:
    """Return a table; a column is its title, data and metric."""
    lines = ["| network | " + " | ".join(title for title, _, _ in columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for network in networks:
        cells = [cell(values.get((network, data, metric), [])) for _, data, metric in columns]
        if any(cells):
            lines.append(f"| {NETWORKS[network]} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Print all tables."""
    values = numbers(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("ledger.csv"))
    data = ("cifar100", "cifar10_jpeg")
    probes = [(f"{name}, {metric}", name, metric) for name in data for metric in ("knn", "linear")]
    print("Probes of frozen features, accuracy in %\n\n" + table(values, probes, [*NETWORKS]))
    few = [(f"{name}, {share:.0%}", name, f"fine_tuned_{share:g}") for name in data for share in (0.01, 0.1, 1.0)]
    print("\nFine-tuned with few labels, accuracy in %\n\n" + table(values, few, ["label_free", "random"]))
    words = [name.removeprefix("knn_") for name in dict.fromkeys(m for _, _, m in values if m.startswith("knn_"))]
    robust = [("clean", "cifar100", "knn"), *((word, "cifar100", f"knn_{word}") for word in words)]
    print("\nkNN on corrupted CIFAR-100 images (severity 3), accuracy in %\n")
    print(table(values, robust, ["label_free", "supervised"]))
    like = [
        (f"{teacher}: {title}", "cifar100", f"{metric}_{teacher}")
        for teacher in ("published", "own")
        for title, metric in (("CKA", "linear_cka"), ("cosine", "mapped_cosine"), ("neighbors", "neighbor_agreement"))
    ]
    print("\nLikeness to the teachers on CIFAR-100's test images, in %\n")
    print(table(values, like, ["label_free", "with_labels", "supervised"]))


if __name__ == "__main__":
    main()
