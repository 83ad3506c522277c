"""What ``kdlab demo`` reports: the table, the files and the picture."""

from __future__ import annotations

import csv
import statistics
from pathlib import Path
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.table import Table
from torch import nn

from kdlab.models import save_weights

TEACHER, ALONE, DISTILLED = "teacher", "student alone", "student distilled"
COLORS = {TEACHER: "#555555", ALONE: "#D55E00", DISTILLED: "#0072B2"}


class Run(NamedTuple):
    """One training: at every validation the epoch and the metrics on the test set, and the network at the end."""

    name: str
    seed: int
    curve: list[tuple[int, dict[str, float]]]
    network: nn.Module

    @property
    def parameters(self) -> int:
        """How many numbers were learnt."""
        return sum(each.numel() for each in self.network.parameters())

    def last(self, key: str) -> float:
        """A metric after the last epoch; agreement and retention of the teacher with itself are 1."""
        return self.curve[-1][1].get(key, 1.0)


def spread(values: list[float], sign: str = "") -> str:
    """Mean ± standard deviation, the latter from two values on."""
    mean = f"{statistics.mean(values):{sign}.1f}"
    return f"{mean} ± {statistics.stdev(values):.1f}" if len(values) > 1 else mean


def table(groups: list[list[Run]], folder: Path) -> Table:
    """The three networks side by side."""
    shown = Table(box=SIMPLE_HEAD, header_style="bold", padding=(0, 1, 0, 0))
    for heading in ("", "parameters", "file", "test\naccuracy %", "agreement\n%", "retention\n%"):
        shown.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for runs in groups:
        file = folder / ("teacher.safetensors" if runs[0].name == TEACHER else "student.safetensors")
        cells = [f"{runs[0].parameters:,}", f"{file.stat().st_size / 1000:.0f} kB"]
        for key in ("student_accuracy", "agreement", "retention"):
            cells.append(spread([100 * each.last(key) for each in runs]))
        shown.add_row(runs[0].name, *cells, style="bold" if runs[0].name == DISTILLED else "")
    shown.caption = "agreement: same answer as the teacher; retention: accuracy over the teacher's"
    return shown


def write(folder: Path, runs: list[Run], student: Run) -> dict[str, str]:
    """Write both networks, the numbers and the picture; the paths, with what each file is."""
    save_weights(student.network, folder / "student.safetensors")
    save_weights(runs[0].network, folder / "teacher.safetensors")
    keys = ["student_accuracy", "agreement", "retention", "kl_to_teacher", "student_ece", "loss"]
    with (folder / "results.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["network", "seed", "parameters", "epoch", "test_accuracy", *keys[1:]])
        for each in runs:
            for epoch, values in each.curve:
                rows.writerow([each.name, each.seed, each.parameters, epoch, *(values.get(key, "") for key in keys)])
    plot(runs).savefig(folder / "curves.png", dpi=150)
    meanings = {
        "student.safetensors": f"the distilled student of seed {student.seed} (always the first, never the best)",
        "teacher.safetensors": "the teacher",
        "results.csv": "all numbers, one line a validation; the table shows the last of each training",
        "curves.png": "test accuracy on the way",
    }
    return {str(folder / name): meaning for name, meaning in meanings.items()}


def plot(runs: list[Run]) -> Figure:
    """Test accuracy over epochs: mean and band of one standard deviation over the seeds, the teacher as a line."""
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    axes = figure.add_subplot()
    ends = {TEACHER: 100 * runs[0].last("student_accuracy")}
    axes.axhline(ends[TEACHER], color=COLORS[TEACHER], linestyle="--", linewidth=1.2)
    epochs = [epoch for epoch, _ in runs[-1].curve]
    for name in (ALONE, DISTILLED):
        points = [[100 * values["student_accuracy"] for _, values in each.curve] for each in runs if each.name == name]
        mean, band = torch.tensor(points).mean(0), torch.tensor(points).std(0, correction=min(1, len(points) - 1))
        axes.plot(epochs, mean, color=COLORS[name], linewidth=2)
        axes.fill_between(epochs, mean - band, mean + band, color=COLORS[name], alpha=0.18, linewidth=0)
        ends[name] = float(mean[-1])
    for name, end in ends.items():
        place = (epochs[-1], end)
        axes.annotate(f"  {name}\n  {end:.1f} %", place, color=COLORS[name], va="center", annotation_clip=False)
    axes.set(xlim=(0, epochs[-1]), ylim=(min(ends.values()) - 8, 100), xlabel="epoch", ylabel="test accuracy (%)")
    title = f"{len(points)} seeds: mean and standard deviation"
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure
