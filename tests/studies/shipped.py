"""The studies of ``experiments/``, cells of theirs, and what their configs say."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kdlab.studies.grid import runs_of
from kdlab.studies.preflight import Resolved
from kdlab.studies.runs import Run
from kdlab.studies.study import Method, Pair, Part, Study
from kdlab.studies.study_file import read

ROOT = Path(__file__).parents[2]
STUDIES = sorted(path.parent.name for path in ROOT.glob("experiments/*/study.yaml"))

Config = dict[str, Any]


def named(name: str) -> Study:
    return read(ROOT / "experiments" / name)


def present(pair: Pair, method: str) -> bool:
    return pair.methods.get(method, Part(())) is not None


def reduced(study: Study, wanted: Callable[[Pair, Method], bool] = lambda pair, method: True) -> Study:
    """The study with the wanted cells alone, one seed each."""
    methods = tuple(dataclasses.replace(each, seeds=each.seeds[:1]) for each in study.methods)
    pairs = []
    for pair in study.pairs:
        others = {each.name: None for each in methods if not wanted(pair, each)}
        pairs.append(dataclasses.replace(pair, methods={**pair.methods, **others}))
    return dataclasses.replace(study, pairs=tuple(pairs), methods=methods)


@functools.cache
def _resolver() -> Resolved:
    """Remembers for the whole session; its file is never written."""
    return Resolved(Path("never-written.json"))


def runs(study: Study, overrides: tuple[str, ...] = ()) -> list[Run]:
    return runs_of(study, _resolver(), overrides)


def cell(study: str, pair: str, method: str) -> Config:
    """The resolved config of a cell; with the method "teacher", of the pair's teacher."""
    by = "KD" if method == "teacher" else method
    found = runs(reduced(named(study), lambda of, each: (of.name, each.name) == (pair, by)))
    (run,) = [each for each in found if bool(each.cells) != (method == "teacher")]
    return dict(run.config)


def optimizer(config: Config) -> tuple[float, float, bool, float]:
    assert config["model"]["init_args"]["optimizer"]["class_path"] == "torch.optim.SGD"
    said = config["model"]["init_args"]["optimizer"]["init_args"]
    return said["lr"], said["momentum"], said["nesterov"], said["weight_decay"]


def schedule(config: Config) -> tuple[list[int], float, int, int]:
    steps = config["model"]["init_args"]["lr_scheduler"]["init_args"]
    return (
        steps["milestones"],
        steps["gamma"],
        config["trainer"]["max_epochs"],
        config["data"]["init_args"]["batch_size"],
    )


def knowledge(config: Config, name: str) -> tuple[float, Config, list[str] | None, list[str] | None]:
    """Weight, arguments of the loss, and the layers of student and teacher."""
    said = config["model"]["init_args"]["knowledge"][name]
    said = said.get("init_args", said)
    return said["weight"], said["loss"].get("init_args") or {}, said["student_layers"], said["teacher_layers"]


def soft(config: Config, name: str) -> tuple[float, float]:
    """Weight and temperature."""
    weight, loss, *_ = knowledge(config, name)
    return weight, loss["temperature"]
