"""``kdlab export``: the student, or the deployed one of several learners, alone out of a run."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from kdlab.errors import InputError
from kdlab.models.checkpoint_reader import read_tensors
from kdlab.models.weights import save_tensors
from kdlab.modules.cotrainer import DEPLOYED


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
    checkpoint = run if run.is_file() else last_checkpoint(run)
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


def last_checkpoint(run: Path) -> Path:
    """The newest checkpoint of a run.

    Raises:
        InputError: the folder is missing or has none.
    """
    if not run.is_dir():
        raise InputError(f"There is no run {str(run)!r}: give a run's folder (such as runs/version_0) or a checkpoint.")
    found = sorted(run.rglob("*.ckpt"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise InputError(f"Run {str(run)!r} has no checkpoint to export from.")
    return found[-1]


def student_of(checkpoint: Path, learner: str | None = None) -> dict[str, Tensor]:
    """The tensors of the student in a checkpoint of a Distiller, or of what a checkpoint of a CoTrainer deploys.

    Or of one of a CoTrainer's ``networks``, by its name.

    Raises:
        InputError: it holds neither.
    """
    tensors = read_tensors(checkpoint)
    for prefix in ("student.", DEPLOYED) if learner is None else (f"networks.{learner}.",):
        found = {n.removeprefix(prefix): value for n, value in tensors.items() if n.startswith(prefix)}
        if found:
            return found
    if learners := dict.fromkeys(name.split(".")[1] for name in tensors if name.startswith("networks.")):
        names = ", ".join(map(repr, learners))
        if learner is not None:
            raise InputError(f"{str(checkpoint)!r} has no learner {learner!r}; it has {names}.")
        raise InputError(
            f"{str(checkpoint)!r} deploys an ensemble, which is not one network: name one with --learner: {names}."
        )
    raise InputError(f"{str(checkpoint)!r} holds no student: it is not a checkpoint of kdlab.Distiller or CoTrainer.")


def student_in(config: dict[str, Any], learner: str | None = None) -> dict[str, Any] | None:
    """The class path and arguments of the student in a run's config, or of the network that it deploys."""
    model = (config.get("model") or {}).get("init_args") or {}
    student = model.get("student")
    if student is None and isinstance(networks := model.get("networks"), dict) and networks:
        deployed = (learner or model.get("deploy") or next(iter(networks))).removeprefix("average_")
        # A branch or exit "NAME_HEAD" is the network inside Branched or WithExits.
        name = next((each for each in networks if deployed == each or deployed.startswith(f"{each}_")), None)
        student = networks.get(name) if name else None
        whole = learner is not None  # named itself, a network with heads is meant with them
        if (
            not whole
            and isinstance(student, dict)
            and isinstance(inner := (student.get("init_args") or {}).get("network"), dict)
        ):
            student = inner
    return student if isinstance(student, dict) else None
