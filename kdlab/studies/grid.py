"""From a study to the runs that it needs: every cell's resolved config, teachers before their students."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kdlab.config.error_location import blamed
from kdlab.config.located_yaml import Place
from kdlab.errors import InputError
from kdlab.studies.run_id import named, of_config
from kdlab.studies.runs import Cell, Run
from kdlab.studies.study import QUOTED, Method, Network, Pair, Part, Study

TEACHER_SEED = 1000
"""Of a teacher whose study says nothing else: no student should start from its teacher's weights."""

CLEARED = "torch.nn.ReLU"
"""Put where a network comes, before it: else it would keep arguments of the recipe's network that it does not name."""

Resolve = Callable[[Sequence[str]], dict[str, Any]]
"""Arguments of ``kdlab fit`` to the whole config, with every default, nothing built."""


def runs_of(study: Study, resolve: Resolve, overrides: Sequence[str] = ()) -> list[Run]:
    """All runs of a study in the order in which to do them: teachers, then by seed, pair and method.

    Cells that need no teacher and are the same for several pairs, such as plain training of one student, are one run.

    Args:
        study: the study.
        resolve: see :data:`Resolve`.
        overrides: options of the command line, laid over everything.

    Raises:
        InputError: a class path is wrong, a config does not fit, or two cells are the same; with the line.
    """
    return _Expansion(study, resolve, overrides).runs()


class _Expansion:
    def __init__(self, study: Study, resolve: Resolve, overrides: Sequence[str]) -> None:
        self.study, self.resolve, self.overrides = study, resolve, list(overrides)
        if any(each.startswith("--seed_everything") for each in self.overrides):
            raise InputError("The seeds of a study stand in its file, as seeds: drop --seed_everything.")
        self.files: dict[str, Path] = {}
        self.teachers: dict[str, Run] = {}

    def runs(self) -> list[Run]:
        for pair in self.study.pairs:
            for network in pair.roles.values():
                self.check(network)
        cells = [
            (pair, method)
            for pair in self.study.pairs
            for method in self.study.methods
            if pair.methods.get(method.name, Part(())) is not None
        ]
        configs = {(pair.name, method.name): self.config(pair, method) for pair, method in cells}
        found: dict[str, Run] = {}
        for seed in sorted({seed for _, method in cells for seed in method.seeds}):
            for pair, method in cells:
                if seed in method.seeds:
                    self.add(found, pair, method, seed, configs[pair.name, method.name])
        taught = {run.teacher.key for run in found.values() if run.teacher is not None}
        return sorted(found.values(), key=lambda run: run.key not in taught)

    def add(self, found: dict[str, Run], pair: Pair, method: Method, seed: int, config: dict[str, Any]) -> None:
        config = seeded(config, seed, self.fixes_data_seed(*self.parts(pair, method)))
        key = of_config(config)
        cell = Cell(pair.name, method.name, seed)
        place = self.place(pair, method)
        if (same := found.get(key)) is not None:
            first = same.cells[0] if same.cells else None
            if method.taught or (first is not None and first.method != method.name):
                other = f"{first.pair}, {first.method}" if first else same.name
                raise self.study.source.error(
                    place, f"{pair.name}, {method.name} is the same training as {other}: a cell may be here once."
                )
            same.cells.append(cell)
            return
        teacher = self.teacher(pair.roles["teacher"]) if method.taught and self.trained(pair) else None
        if teacher is not None:
            teacher = found.setdefault(teacher.key, teacher)  # plain training with its seed is the same
        shown = pair.name if method.taught or len(pair.roles) == 1 else _shown(pair, method)
        student = pair.roles["student"].name
        name = f"{shown}, {method.name}, seed {seed}"
        found[key] = Run(name, config, key, teacher, place, student, [cell], self.files)

    def config(self, pair: Pair, method: Method) -> dict[str, Any]:
        """The resolved config of a cell, but for the seed."""
        special = pair.methods.get(method.name) or Part(())
        placed = {key: self.network(pair, role) for key, role in method.networks.items()}
        parts = self.parts(pair, method)
        networks: list[Mapping[str, Any]] = [dict.fromkeys(placed, CLEARED), placed]
        options = [self.study.recipe.options, pair.part.options, *networks, method.part.options, special.options]
        return self.resolved(parts, options, pair, method.networks, self.place(pair, method))

    def resolved(
        self,
        parts: Sequence[Part],
        options: Sequence[Mapping[str, Any]],
        pair: Pair,
        roles: Mapping[str, str],
        place: Place,
    ) -> dict[str, Any]:
        arguments = [f"--config={path}" for part in parts for path in part.configs]
        for each in options:
            for key, value in each.items():
                arguments.append(f"--{key}={_text(self.unquoted(value, pair, place))}")
        networks = {key: pair.roles[role] for key, role in roles.items()}
        try:
            return self.resolve([*arguments, *self.overrides])
        except InputError as error:
            raise blamed(str(error), self.study.source, parts, networks, self.overrides, place) from error

    def network(self, pair: Pair, role: str) -> dict[str, Any]:
        """The class path and arguments of a role's network; a teacher's with its weights."""
        network = pair.roles[role]
        if role != "teacher" or (self.study.teachers is None and network.name not in self.study.weights):
            return dict(network.build)
        if network.name in self.study.weights:
            path = self.study.weights[network.name]
            weights = f"file:{hashlib.sha256(path.read_bytes()).hexdigest()}"
            self.files[weights] = path
        else:
            weights = f"run:{self.teacher(network).key}"
        known = {"network": dict(network.build), "weights": weights}
        return {"class_path": "kdlab.models.with_weights", "init_args": known}

    def trained(self, pair: Pair) -> bool:
        return self.study.teachers is not None and pair.roles["teacher"].name not in self.study.weights

    def teacher(self, network: Network) -> Run:
        """The training of a teacher, on labels."""
        if network.name not in self.teachers:
            part = self.study.teachers
            assert part is not None
            alone = Pair(network.name, {"student": network}, Part(()), {})
            networks: list[Mapping[str, Any]] = [{"model.student": CLEARED}, {"model.student": dict(network.build)}]
            options = [self.study.recipe.options, *networks, part.options]
            place = ("networks", network.name)
            config = self.resolved([self.study.recipe, part], options, alone, {"model.student": "student"}, place)
            seed = part.options.get("seed_everything", TEACHER_SEED)
            if (config["model"].get("init_args") or {}).get("teacher") is not None:
                raise self.study.source.error(part.place, "the recipe of teachers has a teacher itself.")
            config = seeded(config, int(seed), self.fixes_data_seed(self.study.recipe, part))
            name = f"teacher {network.name}"
            self.teachers[network.name] = Run(name, config, of_config(config), None, place, network.name)
        return self.teachers[network.name]

    def check(self, network: Network) -> None:
        try:
            named(str(network.build["class_path"]))
        except InputError as error:
            raise self.study.source.error(("networks", network.name, "class_path"), str(error)) from error

    def unquoted(self, value: Any, pair: Pair | None, place: Place) -> Any:
        """``value`` with every ``$student.NAME`` replaced by what that network says."""
        if isinstance(value, dict):
            return {key: self.unquoted(each, pair, place) for key, each in value.items()}
        if isinstance(value, list):
            return [self.unquoted(each, pair, place) for each in value]
        if not isinstance(value, str) or (match := QUOTED.fullmatch(value)) is None:
            return value
        role, name = match.groups()
        if pair is None or role not in pair.roles:
            raise self.study.source.error(place, f"{value!r} quotes the network {role!r}, which is not there.")
        network = pair.roles[role]
        if name not in network.quoted:
            raise self.study.source.error(
                ("networks", network.name),
                f"the network {network.name!r} says nothing of {name!r}, which {value!r} quotes.",
            )
        return network.quoted[name]

    def place(self, pair: Pair, method: Method) -> Place:
        """The line to blame for a cell: its own, or its method's."""
        special = pair.methods.get(method.name)
        return special.place if special is not None else method.part.place

    def parts(self, pair: Pair, method: Method) -> list[Part]:
        return [self.study.recipe, pair.part, method.part, pair.methods.get(method.name) or Part(())]

    def fixes_data_seed(self, *parts: Part) -> bool:
        given = any(each.startswith("--data.seed=") for each in self.overrides)
        return given or any("data.seed" in part.options for part in parts)


def seeded(config: Mapping[str, Any], seed: int, fixed_data: bool) -> dict[str, Any]:
    """A resolved config with a seed: of the weights, and of the order and augmentation of the data."""
    own: dict[str, Any] = copy.deepcopy(dict(config))
    own["seed_everything"] = seed
    data = (own.get("data") or {}).get("init_args") or {}
    if "seed" in data and not fixed_data:
        data["seed"] = seed
    return own


def _shown(pair: Pair, method: Method) -> str:
    return " + ".join(pair.roles[role].name for role in method.networks.values())


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
