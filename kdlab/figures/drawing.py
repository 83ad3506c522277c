"""Drawing of the figures from their rows, in colors that color-blind people can tell apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kdlab.figures.comparison import Rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""M. Okabe, K. Ito, "Color Universal Design", 2008, without its yellow, which is faint on white."""
STYLES = ("-", "--", ":", "-.")
NETWORKS = {"student": COLORS[0], "teacher": COLORS[1]}
NAMED = 25
"""Classes whose names fit beside an axis."""


def sized_figure(width: float, height: float) -> Figure:
    """Return an empty figure of a size in inches."""
    from matplotlib.figure import Figure  # takes a second to import

    return Figure(figsize=(width, height), layout="constrained")


def plain(axes: Axes) -> None:
    """Draw a faint grid, and no frame above and on the right."""
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def curves(rows: Rows) -> Figure:
    """Draw the weighted loss terms, and the scores of student and teacher in validation, of one run or several."""
    panels = [name for name in ("loss", "score") if any(row["panel"] == name for row in rows)]
    runs = list(dict.fromkeys(row["run"] for row in rows))
    figure = sized_figure(5.2 * max(1, len(panels)), 3.8)
    for axes, panel in zip(figure.subplots(1, max(1, len(panels)), squeeze=False)[0], panels, strict=False):
        series = list(dict.fromkeys(row["series"] for row in rows if row["panel"] == panel))
        for number, name in enumerate(series):
            for run, style in zip(runs, STYLES * len(runs), strict=False):
                points = [row for row in rows if (row["panel"], row["series"], row["run"]) == (panel, name, run)]
                # One run: a color each series. Several: a color each run, and a line style each series.
                color = COLORS[(runs.index(run) if len(runs) > 1 else number) % len(COLORS)]
                style = STYLES[number % len(STYLES)] if len(runs) > 1 else style
                label = f"{run}: {name}" if len(runs) > 1 else name
                x, y = [row["step"] for row in points], [row["value"] for row in points]
                if points:
                    axes.plot(x, y, style, color=color, label=label, linewidth=1.5, marker="." if len(x) < 3 else "")
        axes.set(xlabel="step", ylabel="weighted loss" if panel == "loss" else "validation score")
        if panel == "loss" and all(row["value"] > 0 for row in rows if row["panel"] == panel):
            axes.set_yscale("log")
        plain(axes)
        axes.legend(fontsize=8, frameon=False)
    return figure


def reliability(rows: Rows) -> Figure:
    """Draw accuracy over confidence of each network, with the share of the samples in each bin."""
    networks = list(dict.fromkeys(row["network"] for row in rows))
    figure = sized_figure(3.9 * len(networks), 4.0)
    for axes, name in zip(figure.subplots(1, len(networks), squeeze=False, sharey=True)[0], networks, strict=True):
        own = [row for row in rows if row["network"] == name]
        total = sum(row["samples"] for row in own)
        lows, width = [row["low"] for row in own], own[0]["high"] - own[0]["low"]
        axes.bar(lows, [row["accuracy"] for row in own], width, align="edge", color=NETWORKS[name], alpha=0.75)
        axes.bar(lows, [row["samples"] / total for row in own], width, align="edge", color="none", edgecolor="black")
        axes.plot([0, 1], [0, 1], "--", color="black", linewidth=1)
        axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence")
        axes.set_title(f"{name}: ECE {100 * own[0]['ece']:.1f} %", fontsize=10)
        plain(axes)
    figure.axes[0].set_ylabel("accuracy (filled), share of samples (outline)")
    return figure


def agreement(rows: Rows) -> Figure:
    """Draw for each class the agreement with the teacher and both accuracies, least agreement first."""
    rows = sorted(rows, key=lambda row: float(row["agreement"]))
    shown, places = rows[:NAMED], range(len(rows[:NAMED]))
    figure = sized_figure(6.4, 1.4 + 0.24 * len(shown))
    axes = figure.add_subplot()
    signs = {"agreement": ("o", COLORS[2]), "student_accuracy": ("|", COLORS[0]), "teacher_accuracy": ("x", COLORS[1])}
    for key, (sign, color) in signs.items():
        label = key.replace("_", " ")
        axes.plot(
            [100 * row[key] for row in shown], places, sign, color=color, label=label, markersize=8, mew=2, mfc="none"
        )
    axes.set_yticks(places, [str(row["class"]) for row in shown], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("% of the samples of a class")
    if len(rows) > NAMED:
        axes.set_title(f"the {NAMED} classes of {len(rows)} with the least agreement", fontsize=10)
    plain(axes)
    axes.legend(
        fontsize=8,
        frameon=False,
        loc="lower center",
        bbox_to_anchor=(0.5, 1.0 if len(rows) <= NAMED else 1.04),
        ncols=3,
    )
    return figure


def confusion(rows: Rows) -> Figure:
    """Draw the share of the teacher's classes that the student gives each class."""
    names = list(dict.fromkeys(row["teacher_class"] for row in rows))
    matrix = _matrix([row["samples"] for row in rows], len(names))
    shares = [[value / max(1, sum(line)) for value in line] for line in matrix]
    figure = sized_figure(5.6, 4.8)
    axes = figure.add_subplot()
    image = axes.imshow(shares, cmap="cividis", vmin=0, vmax=1)
    axes.set(xlabel="student's class", ylabel="teacher's class")
    _classes(axes, names)
    if len(names) <= 12:
        for y, line in enumerate(matrix):
            for x, count in enumerate(line):
                if count:
                    color = "black" if shares[y][x] > 0.6 else "white"
                    axes.text(x, y, str(count), ha="center", va="center", fontsize=8, color=color)
    figure.colorbar(image, label="share of the teacher's class")
    return figure


def cka(rows: Rows) -> Figure:
    """Draw the linear CKA of each layer of the student with each of the teacher."""
    own, taught = (list(dict.fromkeys(row[f"{name}_layer"] for row in rows)) for name in NETWORKS)
    values = _matrix([row["cka"] for row in rows], len(taught))
    figure = sized_figure(2.2 + 0.62 * len(taught), 1.9 + 0.5 * len(own))
    axes = figure.add_subplot()
    image = axes.imshow(values, cmap="cividis", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(len(taught)), taught, rotation=45, ha="right", fontsize=8)
    axes.set_yticks(range(len(own)), own, fontsize=8)
    axes.set(xlabel="teacher's layer", ylabel="student's layer")
    for y, line in enumerate(values):
        for x, value in enumerate(line):
            color = "black" if value > 0.6 else "white"
            axes.text(x, y, f"{value:.2f}", ha="center", va="center", fontsize=8, color=color)
    figure.colorbar(image, label="linear CKA")
    return figure


def correlations(rows: Rows) -> Figure:
    """Draw the student's correlations of the logits of each two classes minus the teacher's."""
    names = list(dict.fromkeys(row["class"] for row in rows))
    differences = [row["difference"] for row in rows]
    figure = sized_figure(5.6, 4.8)
    axes = figure.add_subplot()
    largest = max((abs(value) for value in differences if value == value), default=1.0) or 1.0
    image = axes.imshow(_matrix(differences, len(names)), cmap="PuOr", vmin=-largest, vmax=largest)
    mean = sum(abs(value) for value in differences if value == value) / max(1, len(differences))
    axes.set_title(f"mean absolute difference {mean:.3f}", fontsize=10)
    _classes(axes, names)
    figure.colorbar(image, label="correlation of logits: student - teacher")
    return figure


def _matrix(values: Sequence[Any], width: int) -> list[list[Any]]:
    return [list(values[start : start + width]) for start in range(0, len(values), width)]


def _classes(axes: Axes, names: Sequence[str]) -> None:
    if len(names) <= NAMED:
        axes.set_xticks(range(len(names)), names, fontsize=8, rotation=90 if max(map(len, names)) > 2 else 0)
        axes.set_yticks(range(len(names)), names, fontsize=8)
