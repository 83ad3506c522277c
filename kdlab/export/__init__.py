"""Deployable networks from the checkpoints of a run."""
