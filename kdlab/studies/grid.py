"""Runs of a study: every cell's resolved config, teachers before their students."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from kdlab.config.class_paths import check_class_path
from kdlab.config.error_location import Origin, locate
from kdlab.config.located_yaml import Place, Source
from kdlab.errors import InputError
from kdlab.studies.run_id import of_config
from kdlab.studies.runs import Cell, Run, replaced
from kdlab.studies.study import QUOTED, Method, Network, Pair, Part, Study

TEACHER_SEED = 1000
"""Seed of a teacher whose study names none: no student should start from its teacher's weights."""

CLEARED = "torch.nn.ReLU"
"""Placeholder set before a network: else arguments of the recipe's network would stay where the network names none."""

START = "run:start"
"""Weights of the run that a method starts from, in a config that has no seed yet."""

Resolve = Callable[[Sequence[str]], dict[str, Any]]
"""Function from arguments of ``kdlab fit`` to the whole config, with every default; nothing is built."""


def runs_of(study: Study, resolve: Resolve, overrides: Sequence[str] = ()) -> list[Run]:
    """Return all runs of a study in the order in which to do them: teachers, then by seed, pair and method.

    Cells without a teacher that are the same for several pairs, such as plain training of one student, are one run.
    Options of the command line, ``overrides``, precede everything.

    Raises:
        InputError: a class path is wrong, a config does not fit, or two cells are the same; with the line.
    """
    if any(option.startswith("--seed_everything") for option in overrides):
        raise InputError("A study's seeds are set in its file, under seeds: drop --seed_everything.")
    return _Grid(study, resolve, overrides).runs()


class _Grid:
    def __init__(self, study: Study, resolve: Resolve, overrides: Sequence[str]) -> None:
        self.study, self.resolve, self.overrides = study, resolve, list(overrides)
        self.files: dict[str, Path] = {}
        self.teachers: dict[str, Run] = {}

    def runs(self) -> list[Run]:
        for pair in self.study.pairs:
            for network in (one for several in pair.roles.values() for one in several.networks):
                with self.study.source.errors_at(("networks", network.name, "class_path")):
                    check_class_path(str(network.build["class_path"]))
        cells = [
            (pair, method)
            for pair in self.study.pairs
            for method in self.study.methods
            if pair.methods.get(method.name, Part(())) is not None
        ]
        configs = {(pair.name, method.name): self.config(pair, method) for pair, method in cells}
        runs: dict[str, Run] = {}
        for seed in sorted({seed for _, method in cells for seed in method.seeds}):
            for pair, method in cells:
                if seed in method.seeds:
                    self.add(runs, pair, method, seed, configs[pair.name, method.name])
        taught = {teacher.key for run in runs.values() for teacher in run.teachers}
        return sorted(runs.values(), key=lambda run: run.key not in taught)

    def add(self, runs: dict[str, Run], pair: Pair, method: Method, seed: int, config: dict[str, Any]) -> None:
        config, place = seeded(config, seed, self.fixes_data_seed(*self.parts(pair, method))), self.place(pair, method)
        start: Run | None = None
        if method.start is not None:
            before = Cell(pair.name, method.start, seed)
            if (start := next((run for run in runs.values() if before in run.cells), None)) is None:
                text = f"{method.name!r} starts from {method.start!r}"
                raise self.study.source.error(place, f"{text}, which {pair.name} does not have with seed {seed}.")
            config = replaced(config, {START: f"run:{start.key}"})
        key, cell = of_config(config), Cell(pair.name, method.name, seed)
        if (same := runs.get(key)) is not None:
            first = same.cells[0] if same.cells else None
            if method.taught or (first is not None and first.method != method.name):
                other = f"{first.pair}, {first.method}" if first else same.name
                text = f"{pair.name}, {method.name} is the same training as {other}: a cell may be here once."
                raise self.study.source.error(place, text)
            same.cells.append(cell)
            return
        teachers: list[Run] = []
        for network in pair.roles["teacher"].networks if method.taught and self.study.teachers is not None else ():
            if network.name not in self.study.weights:
                teacher = self.teacher(network)
                teachers.append(runs.setdefault(teacher.key, teacher))  # plain training with its seed is the same
        shared = not method.taught and len(pair.roles) > 1
        networks = " + ".join(pair.roles[role].name for role in method.networks.values())
        name = f"{networks if shared else pair.name}, {method.name}, seed {seed}"
        student = pair.roles["student"].name
        files, export = self.files, self.study.export
        runs[key] = Run(name, config, key, tuple(teachers), place, student, [cell], files, start, export)

    def config(self, pair: Pair, method: Method) -> dict[str, Any]:
        """Return the resolved config of a cell, but for the seed."""
        parts = self.parts(pair, method)
        if method.start is not None:
            pair = _started(pair)
        return self.resolved(parts[:3], parts[3:], pair, method.networks, self.place(pair, method))

    def teacher(self, network: Network) -> Run:
        """Return the training of a teacher on labels."""
        if network.name not in self.teachers:
            part, place = self.study.teachers, ("networks", network.name)
            assert part is not None
            alone = Pair(network.name, {"student": network}, Part(()), {})
            before = [self.study.recipe, network.part]
            config = self.resolved(before, [part], alone, {"model.student": "student"}, place)
            if (config["model"].get("init_args") or {}).get("teacher") is not None:
                raise self.study.source.error(part.place, "the recipe of teachers has a teacher itself.")
            default = part.options.get("seed_everything", TEACHER_SEED)
            seed = int(network.part.options.get("seed_everything", default))
            config = seeded(config, seed, self.fixes_data_seed(*before, part))
            export, key = self.study.export, of_config(config)
            run = Run(f"teacher {network.name}", config, key, (), place, network.name, export=export)
            self.teachers[network.name] = run
        return self.teachers[network.name]

    def resolved(
        self, before: Sequence[Part], after: Sequence[Part], pair: Pair, roles: Mapping[str, str], place: Place
    ) -> dict[str, Any]:
        """Resolve all configs, then options, with the networks by ``roles`` between those before and those after."""
        parts = [*before, *after]
        networks = {key: self.build(pair.roles[role], role) for key, role in roles.items()}
        arguments = [f"--config={path}" for part in parts for path in part.configs]
        options = [part.options for part in before], [part.options for part in after]
        for group in (*options[0], networks, *options[1]):
            for key, value in group.items():
                arguments += [f"--{key}={CLEARED}"] if key in networks else []
                value = self.unquoted(value, pair, place)
                arguments.append(f"--{key}={value if isinstance(value, str) else json.dumps(value)}")
        try:
            return self.resolve([*arguments, *self.overrides])
        except InputError as error:
            origins = self.origins(parts, {key: pair.roles[role] for key, role in roles.items()})
            raise locate(error, origins, self.overrides, Origin(self.study.source, place)) from error

    def origins(self, parts: Sequence[Part], networks: Mapping[str, Network]) -> Iterator[Origin]:
        """Yield what a config was made of, the last value first."""
        for part in reversed(parts):
            yield Origin(self.study.source, (*part.place, "options"))
            yield from (Origin(Source(path)) for path in reversed(part.configs))
        for option, network in networks.items():
            if network.members:
                continue
            yield Origin(self.study.source, ("networks", network.name, "init_args"), option)

    def build(self, network: Network, role: str) -> Any:
        """Return the class path and arguments of a network; a teacher's with its weights, of an ensemble the list."""
        if network.members:
            return [self.build(member, role) for member in network.members]
        if role != "teacher" or (self.study.teachers is None and network.name not in self.study.weights):
            return dict(network.build)
        if network.name in self.study.weights:
            path = self.study.weights[network.name]
            weights = f"file:{hashlib.sha256(path.read_bytes()).hexdigest()}"
            self.files[weights] = path
        else:
            weights = f"run:{self.teacher(network).key}"
        options = {"network": dict(network.build), "weights": weights}
        return {"class_path": "kdlab.models.with_weights", "init_args": options}

    def unquoted(self, value: Any, pair: Pair, place: Place) -> Any:
        """Return ``value`` with every ``$student.NAME`` replaced by that variable of the network."""
        if isinstance(value, dict):
            return {key: self.unquoted(inner, pair, place) for key, inner in value.items()}
        if isinstance(value, list):
            return [self.unquoted(inner, pair, place) for inner in value]
        if not isinstance(value, str) or (match := QUOTED.fullmatch(value)) is None:
            return value
        role, name = match.groups()
        if role not in pair.roles:
            raise self.study.source.error(place, f"there is no network {role!r} (referenced as {value}).")
        network = pair.roles[role]
        if name not in network.quoted:
            text = f"network {network.name!r} defines no variable {name!r} (referenced as {value})."
            raise self.study.source.error(("networks", network.name), text)
        return network.quoted[name]

    def place(self, pair: Pair, method: Method) -> Place:
        """Return the line of a cell: its own, or its method's."""
        special = pair.methods.get(method.name)
        return special.place if special is not None else method.part.place

    def parts(self, pair: Pair, method: Method) -> list[Part]:
        student = pair.roles["student"].part
        return [self.study.recipe, student, pair.part, method.part, pair.methods.get(method.name) or Part(())]

    def fixes_data_seed(self, *parts: Part) -> bool:
        overridden = any(option.startswith("--data.seed=") for option in self.overrides)
        return overridden or any("data.seed" in part.options for part in parts)


def _started(pair: Pair) -> Pair:
    """Return a pair whose student has the weights of the run that it starts from."""
    student = pair.roles["student"]
    build = {"class_path": "kdlab.models.with_weights", "init_args": {"network": dict(student.build), "weights": START}}
    student = replace(student, build=build, quoted={**student.quoted, "start": build})
    return replace(pair, roles={**pair.roles, "student": student})


def seeded(config: Mapping[str, Any], seed: int, fixed_data: bool) -> dict[str, Any]:
    """Return a resolved config with a seed: of the weights, and of the order and augmentation of the data."""
    changed: dict[str, Any] = {**copy.deepcopy(dict(config)), "seed_everything": seed}
    data = (changed.get("data") or {}).get("init_args") or {}
    if "seed" in data and not fixed_data:
        data["seed"] = seed
    return changed
