"""The student of a run as safetensors, and its config."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from kdlab.errors import ExportMismatchError, InputError, form_of
from kdlab.export.adapters import Build, without_adapters
from kdlab.files import write_text
from kdlab.models.checkpoint_reader import read_tensors
from kdlab.models.weights import save_tensors
from kdlab.modules.cotrainer import DEPLOYED

WITH_WEIGHTS = "kdlab.models.with_weights"
CHANGED_BY_WEIGHTS = ("googlenet", "inception_v3")
"""Networks of torchvision whose layers or forward depend on the argument ``weights``; so do those of SWAG weights."""


def export(
    run: Path, out: Path | None = None, learner: str | None = None, build: Build | None = None
) -> tuple[Path, Path | None]:
    """Write ``student.safetensors`` and, where the run has a ``config.yaml``, ``student.yaml``; return both paths.

    The student of a co-training is the network that the run deploys, without what exists in training only. The config
    builds the network with these weights wherever a config takes a network. Low-rank adapters are merged into the
    weights.

    Args:
        run: a run's folder, or a checkpoint in it; a folder means its newest checkpoint.
        out: folder to write to; ``None`` is the run's folder.
        learner: name of a co-training's network; ``None`` is the deployed one.
        build: makes a network of its class path and arguments; needed for students with adapters.
    """
    checkpoint, folder = run_of(run)
    recipe = folder / "config.yaml"
    network = student_in(_read(recipe) if recipe.exists() else {}, learner)
    tensors: Mapping[str, Tensor] = student_of(checkpoint, learner)
    weights, config = ((out or folder) / name for name in ("student.safetensors", "student.yaml"))
    for path in (weights, config):
        if path.exists():
            raise InputError(f"{str(path)!r} exists already: move it, or name another folder with --out.")
    if network is not None:
        network, tensors = without_adapters(_uninitialized(network), tensors, build)
    save_tensors(tensors, weights)
    _check_weights(weights, tensors)
    if network is None:
        return weights, None
    write_text(config, yaml.safe_dump(loaded(network, weights), sort_keys=False))
    return weights, config


def _check_weights(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Compare a file's tensors bit for bit with those that were to be written."""
    written = read_tensors(path)
    differing = [name for name in tensors.keys() | written.keys() if not _is_same(tensors.get(name), written.get(name))]
    if differing:
        failed = path.rename(path.with_name(f"{path.stem}.failed{path.suffix}"))
        text = f"{path.name} is not the network: {min(differing)!r} differs from the checkpoint's"
        raise ExportMismatchError(f"{text}. It is kept as {str(failed)!r}.")


def _is_same(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None or one.dtype != other.dtype or one.shape != other.shape:
        return False
    left, right = (value.contiguous().flatten().view(torch.uint8) for value in (one, other))
    return torch.equal(left, right)


def loaded(network: Mapping[str, Any], weights: Path) -> dict[str, Any]:
    """Return the config of a network with the weights of a file in place of those that it starts training from.

    kdlab's networks load the file themselves; any other is wrapped in :func:`~kdlab.models.with_weights`.
    """
    while network["class_path"] == WITH_WEIGHTS:
        network = network["init_args"]["network"]
    network = _uninitialized(network)
    options, file = network.get("init_args") or {}, str(weights.resolve())
    if network["class_path"].startswith("kdlab.") and "weights" in options:
        return {**network, "init_args": {**options, "weights": file}}
    return {"class_path": WITH_WEIGHTS, "init_args": {"network": network, "weights": file}}


def _uninitialized(value: Any) -> Any:
    """Return a config whose networks load or download no weights, where that leaves the networks as they are."""
    if isinstance(value, list):
        return [_uninitialized(inner) for inner in value]
    if not isinstance(value, Mapping):
        return value
    path, options = str(value.get("class_path", "")), value.get("init_args") or {}
    if path == WITH_WEIGHTS:
        return _uninitialized(options["network"])
    package, name = path.partition(".")[0], path.rpartition(".")[2]
    bare: dict[str, Any] = {}
    is_classifier = path.startswith("torchvision.models.") and not any(
        f".{task}." in path for task in ("detection", "optical_flow", "quantization", "segmentation", "video")
    )
    changed = name in CHANGED_BY_WEIGHTS or "SWAG" in str(options.get("weights"))
    if options.get("weights") and (package == "kdlab" or (is_classifier and not changed)):
        bare["weights"] = None
    if options.get("pretrained") and package in ("kdlab", "timm"):
        bare["pretrained"] = False
    inner = {key: _uninitialized(part) for key, part in value.items()}
    return {**inner, "init_args": {**inner["init_args"], **bare}} if bare else inner


def _read(path: Path) -> dict[str, Any]:
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise InputError(f"{str(path)!r} cannot be read: {str(error).splitlines()[0]}.") from error
    if not isinstance(config, dict):
        raise InputError(f"{str(path)!r} is no config of a run, but {form_of(config)}.")
    return config


def run_of(run: Path) -> tuple[Path, Path]:
    """Return the checkpoint and the folder of a run that is named by its folder or by a checkpoint in it."""
    checkpoint = run if run.is_file() else newest_checkpoint(run)
    return checkpoint, checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint.parent


def newest_checkpoint(run: Path) -> Path:
    """Return the newest checkpoint of a run."""
    if not run.is_dir():
        raise InputError(f"There is no run {str(run)!r}: give a run's folder (such as runs/version_0) or a checkpoint.")
    checkpoints = list(run.rglob("*.ckpt"))
    if not checkpoints:
        raise InputError(f"Run {str(run)!r} has no checkpoint to export from.")
    return max(checkpoints, key=lambda path: path.stat().st_mtime)


def student_of(checkpoint: Path, learner: str | None = None) -> dict[str, Tensor]:
    """Return a network's tensors in a checkpoint, under its own key names.

    It is the student of a Distiller, the deployed network of a CoTrainer, or the ``learner`` of that name.
    """
    tensors = read_tensors(checkpoint)
    for prefix in ("student.", DEPLOYED) if learner is None else (f"networks.{learner}.",):
        if student := {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}:
            return student
    networks = dict.fromkeys(key.split(".")[1] for key in tensors if key.startswith("networks."))
    names = ", ".join(map(repr, networks))
    if not networks:
        reason = "holds no student: it is not a checkpoint of kdlab.Distiller or CoTrainer"
    elif learner is not None:
        reason = f"has no learner {learner!r}; it has {names}"
    else:
        reason = f"deploys an ensemble, which is not one network: name one with --learner: {names}"
    raise InputError(f"{str(checkpoint)!r} {reason}.")


def student_in(config: dict[str, Any], learner: str | None = None) -> dict[str, Any] | None:
    """Return class path and arguments of the network that :func:`student_of` returns, from a run's ``config.yaml``."""
    model = config.get("model")
    options = (model.get("init_args") if isinstance(model, dict) else None) or {}
    student, networks = options.get("student"), options.get("networks")
    if student is None and isinstance(networks, dict) and networks:
        networks = {name: network for name, network in networks.items() if network is not None}  # else taken out
        deployed = (learner or options.get("deploy") or next(iter(networks))).removeprefix("average_")
        # A branch or exit is deployed as NETWORK_HEAD; it is the network inside Branched or WithExits.
        name = next((name for name in networks if deployed == name or deployed.startswith(f"{name}_")), "")
        student = networks.get(name)
        if learner is None and isinstance(student, dict):
            inner = (student.get("init_args") or {}).get("network")
            student = inner if isinstance(inner, dict) else student
    return student if isinstance(student, dict) else None
