"""Optimizers for distillation."""

from kdlab.optimizers.dot import DOT

__all__ = ["DOT"]
