"""One training of a study: its resolved config, its identity and its folder."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from kdlab.config.located_yaml import Place
from kdlab.config.run_folder import placed
from kdlab.files import write_json, write_text
from kdlab.modules.teacher_choice import FILE
from kdlab.studies.run_id import digest

RECIPE, RESULT, STUDENT, EXPORT = "recipe.yaml", "result.json", "student.safetensors", "export.json"


@dataclass(frozen=True)
class Cell:
    """One place in the table, for one seed."""

    pair: str
    method: str
    seed: int


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        name: for people, such as "resnet56 → resnet20, KD, seed 0".
        config: resolved; weights of a teacher trained here are "run:KEY" in it, files "file:SHA-256".
        key: hash of config, kdlab's version and the code it names (:func:`kdlab.studies.run_id.of_config`).
        teachers: the runs of its teachers, which it waits for.
        place: of the line in the study that it comes from.
        network: name of the student's network.
        cells: of the table that it fills; none for a teacher.
        files: paths by "file:SHA-256".
        start: the run whose student it starts from, which it waits for too.
        export: the file that is made of its student, as the study says.
    """

    name: str
    config: Mapping[str, Any]
    key: str
    teachers: tuple[Run, ...]
    place: Place
    network: str
    cells: list[Cell] = field(default_factory=list)
    files: Mapping[str, Path] = field(default_factory=dict)
    start: Run | None = None
    export: Mapping[str, Any] = field(default_factory=dict)

    @property
    def awaited(self) -> tuple[Run, ...]:
        """Return the runs whose weights this one needs."""
        return (*self.teachers, self.start) if self.start else self.teachers

    @property
    def seed(self) -> int:
        """Return the seed of the run."""
        return int(self.config["seed_everything"])

    @property
    def epochs(self) -> int:
        """Return the epochs to train; 1 where the recipe counts steps alone."""
        return max(1, int(self.config["trainer"].get("max_epochs") or 1))

    def identity(self, data: str) -> str:
        """Return the hash of the key and of the data's fingerprint."""
        return digest(self.key, data)

    def folder(self, runs: Path, data: str) -> Path:
        """Return the folder of the run."""
        slug = re.sub(r"[^\w.+-]+", "-", self.name.replace(" → ", "-to-").replace(", ", "_")).strip("-")
        return runs / f"{slug[:80]}-{self.identity(data)}"

    def prepare(
        self,
        runs: Path,
        data: str,
        loggers: Sequence[Mapping[str, Any]] = (),
        awaited: Sequence[Path] = (),
        cache: Path | None = None,
    ) -> Path:
        """Write the run's whole config into its folder and return the folder.

        Args:
            runs: folder of all runs.
            data: fingerprint of the data.
            loggers: configs of further loggers.
            awaited: folders of the runs that it waits for.
            cache: folder of the outputs of frozen teachers, where the recipe names none; they change no result.
        """
        folder = self.folder(runs, data)
        weights = {text: str(path.resolve()) for text, path in self.files.items()}
        folders = awaited or [run.folder(runs, data) for run in self.awaited]
        for run, trained in zip(self.awaited, folders, strict=True):
            weights[f"run:{run.key}"] = str((trained / STUDENT).resolve())
        config = placed(replaced(dict(self.config), weights), folder, loggers)
        config["model"] = _sharing(config["model"], str((runs / FILE).resolve()))
        record = {"class_path": "kdlab.studies.run_callback.Record", "init_args": {"folder": str(folder)}}
        callbacks = config["trainer"]["callbacks"] or []
        config["trainer"]["callbacks"] = [*(callbacks if isinstance(callbacks, list) else [callbacks]), record]
        options = config["model"].get("init_args") or {}
        if cache is not None and options.get("teacher") is not None and options.get("teacher_cache", "") is None:
            about = {"folder": str(cache.resolve()), "dtype": "float32", "shared": True}
            options["teacher_cache"] = {"class_path": "kdlab.teaching.TeacherCache", "init_args": about}
        if self.export:
            write_json(folder / EXPORT, dict(self.export))
        write_text(folder / RECIPE, yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
        return folder


def replaced(value: Any, texts: Mapping[str, str]) -> Any:
    """Return a config in which some texts are others."""
    if isinstance(value, dict):
        return {key: replaced(inner, texts) for key, inner in value.items()}
    if isinstance(value, list):
        return [replaced(inner, texts) for inner in value]
    return texts.get(value, value) if isinstance(value, str) else value


def _sharing(value: Any, path: str) -> Any:
    """Return a config whose timed :class:`~kdlab.members.Fast` share a file, so that each teacher has one choice."""
    if isinstance(value, dict):
        shared = {"timed": path} if value.get("timed") is True and "fold" in value else {}
        return {**{key: _sharing(inner, path) for key, inner in value.items()}, **shared}
    return [_sharing(inner, path) for inner in value] if isinstance(value, list) else value
