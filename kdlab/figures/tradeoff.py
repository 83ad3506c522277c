"""Accuracy over what a network costs: latency and size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kdlab.figures.comparison import Rows
from kdlab.figures.drawing import COLORS, plain, sized_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COSTS = (("p50_ms_1", 1.0, "median latency at batch 1 in ms"), ("bytes", 1e-6, "size in MB"))


def tradeoff(rows: Rows) -> Figure:
    """Draw accuracy against latency and against size, a marker for each row of a profile that has an accuracy."""
    figure = sized_figure(5.2 * len(COSTS), 3.8)
    shown = [row for row in rows if row["accuracy"] is not None]
    markers: Sequence[str] = "osD^vPX*"
    for axes, (cost, scale, label) in zip(figure.subplots(1, len(COSTS)), COSTS, strict=True):
        for number, row in enumerate(shown):
            color, marker = COLORS[number % len(COLORS)], markers[number % len(markers)]
            name = f"{row['name']} ({row['runtime'].partition(' ')[0]})"
            axes.plot(scale * row[cost], 100 * row["accuracy"], marker, color=color, label=name)
        axes.set(xlabel=label, ylabel="accuracy in %")
        axes.set_xscale("log")
        plain(axes)
    if shown:
        axes.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure
