"""The student, or the deployed network, in a checkpoint and in a config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from kdlab.errors import InputError
from kdlab.models.checkpoint_reader import read_tensors
from kdlab.modules.cotrainer import DEPLOYED


def newest_checkpoint(run: Path) -> Path:
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
