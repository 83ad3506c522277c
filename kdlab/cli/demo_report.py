"""Progress, table, files and curves of the demo: ``python -m kdlab.cli.demo_report SEEDS EPOCHS FOLDER``."""

from __future__ import annotations

import logging
import sys
import time
import warnings
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from matplotlib.figure import Figure
from pytorch_lightning.callbacks import LambdaCallback
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from kdlab.cli.printing import csv_text, number_table
from kdlab.files import write_text
from kdlab.models import save_weights
from kdlab.studies import statistics
from kdlab.studies.digits_demo import ALONE, DISTILLED, SETTING, TEACHER, Run, train_all

ACCURACY = "student_accuracy"
COLORS = {TEACHER: "#555555", ALONE: "#D55E00", DISTILLED: "#0072B2"}
FAIR = """\
The comparison is fair: with each seed, both students start from the same weights and see the same {labeled} labeled \
images, shifted and mixed in pairs (Mixup) alike, in the same order, for the same {steps} steps of the same optimizer; \
only the loss differs: one learns from the labels, the other from the soft labels that the teacher (trained on all \
1,297 images) gives to these images. All numbers are of the last epoch, on the 500 test images; no epoch was picked, \
and learning rate, temperature and Mixup were chosen on training images held out, with other seeds \
(experiments/demo/choose.py).
"""


def report(seeds: int, epochs: int, folder: Path) -> None:
    """Train, print the table, and write the files into an existing folder."""
    start, console = time.monotonic(), Console(highlight=False)
    console.print("\nHandwritten digits: a teacher, and a small student with and without its help.\n")
    runs = list(train_all(seeds, epochs, partial(progress_line, console)))
    teacher, alone, distilled = ([run for run in runs if run.name == name] for name in (TEACHER, ALONE, DISTILLED))
    files = write(folder, [*teacher, *alone, *distilled], distilled[0])
    console.print(table([teacher, alone, distilled], folder))
    gains = [100 * (run.last(ACCURACY) - plain.last(ACCURACY)) for run, plain in zip(distilled, alone, strict=True)]
    console.print(f"Distillation: {gain_text(gains)}\n")
    console.print(FAIR.format(labeled=SETTING.labeled, steps=epochs * -(-SETTING.labeled // SETTING.batch)))
    width = max(map(len, files))
    for path, meaning in files.items():
        console.print(f"  {path:<{width}}  {meaning}", soft_wrap=True)
    console.print(f"\nDone in {time.monotonic() - start:.0f} s. Next, a recipe to make your own:\n")
    console.print("  kdlab fit -c kd_digits\n")


def gain_text(gains: Sequence[float]) -> str:
    """Return the gains of all seeds in points as text, and whether each is larger than their standard deviation."""
    text = f"{spread(gains, sign='+')} points of accuracy (seed by seed {', '.join(f'{gain:+.1f}' for gain in gains)})"
    value = statistics.spread(gains)
    if value is None or value.std is None:
        return f"{text}."
    larger = sum(gain > value.std for gain in gains)
    return f"{text}; the gain is larger than its spread with {larger} of {len(gains)} seeds."


def progress_line(console: Console, name: str, seed: int, epochs: int) -> pl.Callback:
    """Return a callback that draws one line of progress, with the accuracy of the last validation."""
    title = f"  {name:<17} " + (" " * 6 if name == TEACHER else f"seed {seed}")
    accuracy = TextColumn("{task.fields[accuracy]:>6}")
    progress = Progress(TextColumn(title), BarColumn(30), accuracy, TimeElapsedColumn(), console=console)
    task = progress.add_task("", total=epochs, accuracy="")

    def show(trainer: pl.Trainer, *_: object) -> None:
        progress.update(task, accuracy=f"{float(trainer.callback_metrics[f'val/{ACCURACY}']):.1%}")

    return LambdaCallback(
        on_fit_start=lambda *_: progress.start(),
        on_validation_end=show,
        on_train_epoch_end=lambda *_: progress.advance(task),
        teardown=lambda *_, **__: progress.stop(),
    )


def spread(values: Sequence[float], sign: str = "") -> str:
    """Return mean ± standard deviation as text, the latter from two values on."""
    value = statistics.spread(values)
    assert value is not None
    return f"{value.mean:{sign}.1f}" + ("" if value.std is None else f" ± {value.std:.1f}")


def table(groups: Iterable[Sequence[Run]], folder: Path) -> Table:
    """Return the three networks side by side."""
    columns = ("", "parameters", "file", "test\naccuracy %", "agreement\n%", "retention\n%")
    printed = number_table(columns, "agreement: same class as the teacher; retention: accuracy over the teacher's")
    for runs in groups:
        name = runs[0].name
        file = folder / ("teacher.safetensors" if name == TEACHER else "student.safetensors")
        cells = [f"{runs[0].parameters:,}", f"{file.stat().st_size / 1000:.0f} kB"]
        cells += [spread([100 * run.last(key) for run in runs]) for key in (ACCURACY, "agreement", "retention")]
        printed.add_row(name, *cells, style="bold" if name == DISTILLED else "")
    return printed


def write(folder: Path, runs: Sequence[Run], student: Run) -> dict[str, str]:
    """Write both networks, the numbers and the curves; return the paths, with what each file is."""
    save_weights(student.network, folder / "student.safetensors")
    save_weights(runs[0].network, folder / "teacher.safetensors")
    keys = ("agreement", "retention", "kl_to_teacher", "student_ece", "loss")
    rows: list[Sequence[Any]] = [("network", "seed", "parameters", "epoch", "test_accuracy", *keys)]
    for run in runs:
        head, columns = (run.name, run.seed, run.parameters), (ACCURACY, *keys)
        rows += [(*head, epoch, *map(values.get, columns)) for epoch, values in run.curve]
    write_text(folder / "results.csv", csv_text(rows))
    plot(runs).savefig(folder / "curves.png", dpi=150)
    meanings = {
        "student.safetensors": f"the distilled student of seed {student.seed} (always the first, never the best)",
        "teacher.safetensors": "the teacher",
        "results.csv": "all numbers, one line a validation; the table shows the last of each training",
        "curves.png": "test accuracy during training",
    }
    return {str(folder / name): meaning for name, meaning in meanings.items()}


def plot(runs: Sequence[Run]) -> Figure:
    """Return test accuracy over epochs: mean ± one standard deviation over the seeds, and the teacher as a line."""
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    axes = figure.add_subplot()
    ends = {TEACHER: 100 * runs[0].last(ACCURACY)}
    axes.axhline(ends[TEACHER], color=COLORS[TEACHER], linestyle="--", linewidth=1.2)
    epochs = [epoch for epoch, _ in runs[-1].curve]
    for name in (ALONE, DISTILLED):
        points = torch.tensor([[100 * values[ACCURACY] for _, values in run.curve] for run in runs if run.name == name])
        mean, band = points.mean(0), points.std(0, correction=min(1, len(points) - 1))
        axes.plot(epochs, mean, color=COLORS[name], linewidth=2)
        axes.fill_between(epochs, mean - band, mean + band, color=COLORS[name], alpha=0.18, linewidth=0)
        ends[name] = float(mean[-1])
    for name, end in ends.items():
        place = (epochs[-1], end)
        axes.annotate(f"  {name}\n  {end:.1f} %", place, color=COLORS[name], va="center", annotation_clip=False)
    axes.set(xlim=(0, epochs[-1]), ylim=(min(ends.values()) - 8, 100), xlabel="epoch", ylabel="test accuracy (%)")
    axes.set_title(f"{len(points)} seeds: mean and standard deviation", fontsize=10)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    report(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
