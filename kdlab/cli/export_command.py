"""``kdlab export``: the student of a run."""

from __future__ import annotations

from pathlib import Path

from kdlab.config.class_paths import instantiate
from kdlab.export.student import export as write


def export(run: Path, out: Path | None = None, learner: str | None = None) -> None:
    """Write the student of a run, or the network that a co-training deploys.

    The files are student.safetensors, with the network's original key names, and student.yaml, its config, which builds
    it with these weights: kdlab fit -c RECIPE --model.teacher=student.yaml. LoRA adapters are merged into the weights.

    Args:
        run: folder of a run, or one of its checkpoints
        out: folder to write to (default: the run's folder)
        learner: another network of a co-training than the deployed one
    """
    weights, config = write(run, out, learner, instantiate)
    print(f"{weights} ({weights.stat().st_size / 1e6:.2f} MB)")
    if config:
        print(f"{config} builds it with these weights in any config: --model.teacher={config}")
