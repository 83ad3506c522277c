"""Figures of runs: curves, calibration, agreement, similarity of layers, class correlations."""

from kdlab.figures.figure_callback import LogFigures

__all__ = ["LogFigures"]
