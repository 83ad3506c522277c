"""A small study, a resolver that parses nothing, and rows for its ledger."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

import kdlab
from kdlab.studies.grid import runs_of
from kdlab.studies.ledger import FINISHED, Ledger
from kdlab.studies.runs import Run
from kdlab.studies.study import Study
from kdlab.studies.study_file import read

STUDY = """\
title: Small networks
recipe:
  configs: [recipe.yaml]
networks:
  big: {class_path: kdlab.models.mlp, init_args: {hidden: [64]}, taps: [one, two]}
  tiny: {class_path: kdlab.models.mlp, init_args: {hidden: [8]}, taps: [one]}
teachers:
  options: {trainer.max_epochs: 6}
pairs:
  - {teacher: big, student: tiny}
methods:
  plain: {networks: {model.student: student}}
  KD: {configs: [kd.yaml]}
seeds: [0, 1]
"""
PAIR = "big → tiny"
KD = {"kd": {"loss": {"class_path": "kdlab.losses.SoftTargets", "init_args": {"temperature": 4.0}}, "weight": 0.9}}


def write(folder: Path, text: str = STUDY) -> Path:
    """The study file, with the configs beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text("trainer: {max_epochs: 3}\n")
    (folder / "kd.yaml").write_text(yaml.safe_dump({"model": {"init_args": {"knowledge": KD}}}))
    path = folder / "study.yaml"
    path.write_text(textwrap.dedent(text))
    return path


def study(folder: Path, text: str = STUDY, weights: Mapping[str, Path] | None = None) -> Study:
    return read(write(folder, text), weights)


def base() -> dict[str, Any]:
    """What a resolved config has at least."""
    return {
        "seed_everything": 0,
        "trainer": {"max_epochs": 2, "precision": None, "callbacks": None, "logger": None, "devices": "auto"},
        "model": {
            "class_path": "kdlab.Distiller",
            "init_args": {
                "student": None,
                "teacher": None,
                "knowledge": None,
                "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}},
                "teacher_cache": None,
            },
        },
        "data": {"class_path": "kdlab.data.Digits", "init_args": {"batch_size": 50, "seed": 0, "root": "data"}},
        "checkpoint": {"dirpath": None, "monitor": None},
        "ckpt_path": None,
    }


def resolve(arguments: Sequence[str]) -> dict[str, Any]:
    """The config of ``--config=FILE`` and ``--KEY=VALUE``, laid over each other; nothing is checked."""
    config = base()
    for each in arguments:
        key, _, value = each.removeprefix("--").partition("=")
        if key == "config":
            _lay(config, yaml.safe_load(Path(value).read_text()))
            continue
        part, *names = key.split(".")
        path = [part, "init_args", *names] if part in ("model", "data") else [part, *names]
        inside = config
        for name in path[:-1]:
            inside = inside.setdefault(name, {})
        inside[path[-1]] = yaml.safe_load(value)
    return config


def _lay(config: dict[str, Any], more: Mapping[str, Any]) -> None:
    for key, value in more.items():
        if isinstance(value, dict) and isinstance(config.get(key), dict):
            _lay(config[key], value)
        else:
            config[key] = value


def runs(folder: Path, text: str = STUDY, **changes: Any) -> list[Run]:
    return runs_of(study(folder, text), changes.pop("resolve", resolve), **changes)


def named(runs: Sequence[Run]) -> dict[str, Run]:
    return {run.name: run for run in runs}


def enter(ledger: Ledger, run: Run, accuracy: float, data: str = "data", **more: Any) -> None:
    """A row of a run that ended well."""
    cell = run.cells[0] if run.cells else None
    values = {
        "run": run.identity(data),
        "config": run.key,
        "data": data,
        "pair": cell.pair if cell else "",
        "method": cell.method if cell else "",
        "seed": run.seed,
        "network": run.network,
        "status": FINISHED,
        "kdlab": kdlab.__version__,
        "accuracy": accuracy,
    }
    ledger.append({**values, **more})


Resolver = Callable[[Sequence[str]], dict[str, Any]]


def heard(into: list[list[str]]) -> Resolver:
    """:func:`resolve` that notes its arguments."""

    def resolving(arguments: Sequence[str]) -> dict[str, Any]:
        into.append(list(arguments))
        return resolve(arguments)

    return resolving
