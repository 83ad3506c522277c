"""``kdlab export``: the student, or the deployed one of several learners, alone out of a run."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import yaml

from kdlab.errors import InputError
from kdlab.export.student import newest_checkpoint, student_in, student_of
from kdlab.models.weights import save_tensors


def run(arguments: Sequence[str]) -> None:
    """Parse the arguments, write the student and say where."""
    parser = argparse.ArgumentParser(
        prog="kdlab export",
        description="Write the student of a run, or the network that a co-training deploys, as safetensors with its "
        "original key names, and its config as YAML.",
    )
    parser.add_argument("run", help="folder of a run, or one of its checkpoints")
    parser.add_argument("--out", help="folder to write to (default: the run's folder)")
    parser.add_argument("--learner", help="of a co-training, another learner than the deployed one")
    given = parser.parse_args(list(arguments))
    weights, config = export(Path(given.run), Path(given.out) if given.out else None, given.learner)
    print(f"{weights} ({weights.stat().st_size / 1e6:.2f} MB)")
    if config:
        print(f"{config} names the network: use it as a student or teacher in a config.")


def export(run: Path, out: Path | None = None, learner: str | None = None) -> tuple[Path, Path | None]:
    """Write ``student.safetensors`` and, where the run has a ``config.yaml``, ``student.yaml``.

    Of a co-training the student is the network that the run deploys, without what exists in training only.

    Args:
        run: a run's folder, or a checkpoint in it; a folder means its last checkpoint.
        out: the folder to write to; ``None`` is the run's folder.
        learner: of a co-training, the name of a network; ``None`` is the deployed one.

    Returns:
        Both paths; the second is ``None`` where the run has no config.

    Raises:
        InputError: there is no checkpoint, it holds no student, or the files exist already.
    """
    checkpoint = run if run.is_file() else newest_checkpoint(run)
    folder = checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint.parent
    recipe = folder / "config.yaml"
    read = yaml.safe_load(recipe.read_text()) if recipe.exists() else {}
    tensors, network = student_of(checkpoint, learner), student_in(read, learner)
    out = out or folder
    weights = out / "student.safetensors"
    config = out / "student.yaml"
    for path in (weights, config):
        if path.exists():
            raise InputError(f"{str(path)!r} exists already: move it, or name another folder with --out.")
    save_tensors(tensors, weights)
    if network is None:
        return weights, None
    if "weights" in network.get("init_args", {}):
        network["init_args"]["weights"] = str(weights)
    config.write_text(yaml.safe_dump(network, sort_keys=False))
    return weights, config
