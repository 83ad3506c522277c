"""What a study file says: a recipe, networks, pairs of them, methods and seeds."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdlab.config.located_yaml import Place, Source
from kdlab.errors import InputError, nearest

KEYS = (
    *("title", "paper", "recipe", "networks", "teachers", "pairs", "methods", "baseline", "reference", "seeds"),
    *("published", "note"),
)
TEACHER = {"model.student": "student", "model.teacher": "teacher"}
QUOTED = re.compile(r"\$(\w+)\.(\w+)")


@dataclass(frozen=True)
class Part:
    """Something laid over a run's config: whole config files, then single options as of ``kdlab fit --KEY=VALUE``."""

    place: Place
    configs: tuple[Path, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Network:
    """A network by its class path, and names of its own that options may quote as ``$student.NAME``."""

    name: str
    build: Mapping[str, Any]
    quoted: Mapping[str, Any]


@dataclass(frozen=True)
class Method:
    """What is added to the recipe, which network goes where in the config, and the seeds."""

    name: str
    part: Part
    networks: Mapping[str, str]
    seeds: tuple[int, ...]

    @property
    def taught(self) -> bool:
        """Whether a frozen teacher takes part."""
        return "teacher" in self.networks.values()


@dataclass(frozen=True)
class Pair:
    """Networks by the role that they play, and what is special of this pair, of all methods and of single ones."""

    name: str
    roles: Mapping[str, Network]
    part: Part
    methods: Mapping[str, Part | None]
    """By name; ``None`` where the study leaves a method out for this pair."""


@dataclass(frozen=True)
class Study:
    """A study as its file says it; nothing has been looked up but files."""

    source: Source
    name: str
    title: str
    recipe: Part
    teachers: Part | None
    """The recipe of a teacher on top of the study's; ``None`` where teachers come as their class paths build them."""
    weights: Mapping[str, Path]
    """Files of teachers that are not trained here, by the network's name."""
    pairs: tuple[Pair, ...]
    methods: tuple[Method, ...]
    baseline: str
    reference: str | None
    published: Path | None
    note: str

    @property
    def folder(self) -> Path:
        """Where the study file lies."""
        return self.source.path.parent

    def method(self, name: str) -> Method:
        """A method by name."""
        return next(each for each in self.methods if each.name == name)


def read(path: Path, weights: Mapping[str, Path] | None = None) -> Study:
    """A study from its file, or from the folder that holds it as ``study.yaml``.

    Args:
        path: the file or the folder.
        weights: files of teachers by the network's name, beside or instead of those that the study names.

    Raises:
        InputError: it cannot be read, names a file that is not there, something unknown, or the same thing twice; the
            message names the line.
    """
    path = path / "study.yaml" if path.is_dir() else path
    if not path.is_file():
        raise InputError(f"There is no study {str(path)!r}: name a study file, or a folder with a study.yaml.")
    return _Reader(Source(path)).study(weights or {})


class _Reader:
    def __init__(self, source: Source) -> None:
        self.source = source
        self.error = source.error

    def study(self, weights: Mapping[str, Path]) -> Study:
        said = self.source.mapping(self.source.content, (), KEYS)
        for key in ("networks", "pairs", "methods"):
            if not said.get(key):
                raise self.error((), f"a study has {key}: this one has none.")
        seeds = self.seeds(said.get("seeds", [0]), ("seeds",))
        networks = {
            name: self.network(name, each)
            for name, each in self.source.mapping(said["networks"], ("networks",)).items()
        }
        methods = {
            name: self.method(name, each, seeds)
            for name, each in self.source.mapping(said["methods"], ("methods",)).items()
        }
        pairs = self.pairs(said["pairs"], networks, methods)
        teachers, own = self.teachers(said.get("teachers"), networks)
        if unknown := [name for name in weights if name not in networks]:
            raise InputError(
                f"{self.source.path} has no network {unknown[0]!r}; the nearest are {nearest(unknown[0], networks)}."
            )
        baseline = self.named("baseline", said.get("baseline", next(iter(methods))), methods)
        path = self.source.path.resolve()
        return Study(
            source=self.source,
            name=path.parent.name if path.name == "study.yaml" else path.stem,
            title=str(said.get("title", "")),
            recipe=self.part(said.get("recipe"), ("recipe",)),
            teachers=teachers,
            weights={**own, **weights},
            pairs=pairs,
            methods=tuple(methods.values()),
            baseline=baseline,
            reference=self.named("reference", said["reference"], methods) if said.get("reference") else None,
            published=self.file(said["published"], ("published",)) if said.get("published") else None,
            note=str(said.get("note", "")),
        )

    def named(self, key: str, name: Any, methods: Mapping[str, Method]) -> str:
        if not isinstance(name, str) or name not in methods:
            raise self.error(
                (key,), f"{key} is the name of a method, not {name!r}; the nearest are {nearest(str(name), methods)}."
            )
        return str(name)

    def file(self, name: Any, place: Place) -> Path:
        if not isinstance(name, str):
            raise self.error(place, f"this is the path of a file, not {name!r}.")
        path = (self.source.path.parent / name).resolve()
        if not path.is_file():
            raise self.error(place, f"there is no file {name!r} (looked for {str(path)!r}).")
        return _short(path)

    def part(self, said: Any, place: Place, others: tuple[str, ...] = ()) -> Part:
        known = self.source.mapping(said, place, ("configs", "options", *others))
        configs = known.get("configs") or []
        if not isinstance(configs, list):
            raise self.error((*place, "configs"), "configs is a list of files.")
        files = tuple(self.file(each, (*place, "configs", number)) for number, each in enumerate(configs))
        for path in files:
            Source(path)  # refuses what is not YAML, and a key that is there twice, with the file's own line
        options = self.source.mapping(known.get("options"), (*place, "options"))
        if "seed_everything" in options and place != ("teachers",):
            where = (*place, "options", "seed_everything")
            raise self.error(where, "seeds of students stand in the study's or a method's seeds.")
        return Part(place, files, options)

    def network(self, name: str, said: Any) -> Network:
        place = ("networks", name)
        known = {"class_path": said} if isinstance(said, str) else self.source.mapping(said, place)
        if not isinstance(known.get("class_path"), str):
            raise self.error(place, f"the network {name!r} has a class_path, such as kdlab.models.resnet20.")
        build = {key: known[key] for key in ("class_path", "init_args") if key in known}
        return Network(name, build, {key: value for key, value in known.items() if key not in build})

    def method(self, name: str, said: Any, seeds: tuple[int, ...]) -> Method:
        place = ("methods", name)
        part = self.part(said, place, ("networks", "seeds"))
        known = self.source.mapping(said, place)
        networks = self.source.mapping(known.get("networks", TEACHER), (*place, "networks"))
        for key, role in networks.items():
            if not isinstance(role, str):
                raise self.error((*place, "networks", key), f"this is a role, such as student, not {role!r}.")
        if "student" not in networks.values():
            roles = ", ".join(map(repr, networks.values())) or "nothing"
            raise self.error(
                (*place, "networks"), f"the method {name!r} places {roles}, and the network 'student' nowhere."
            )
        own = self.seeds(known["seeds"], (*place, "seeds")) if "seeds" in known else seeds
        return Method(name, part, networks, own)

    def seeds(self, said: Any, place: Place) -> tuple[int, ...]:
        if not isinstance(said, list) or not said or any(type(each) is not int or each < 0 for each in said):
            raise self.error(place, f"seeds is a list of whole numbers from 0 on, such as [0, 1, 2], not {said!r}.")
        for number, seed in enumerate(said):
            if seed in said[:number]:
                raise self.error((*place, number), f"the seed {seed} is there twice.")
        return tuple(said)

    def teachers(self, said: Any, networks: Mapping[str, Network]) -> tuple[Part | None, dict[str, Path]]:
        if said is None:
            return None, {}
        known = self.source.mapping(said, ("teachers",))
        place = ("teachers", "weights")
        files = {}
        for name, path in self.source.mapping(known.get("weights"), place).items():
            if name not in networks:
                raise self.error(
                    (*place, name), f"there is no network {name!r}; the nearest are {nearest(name, networks)}."
                )
            files[name] = self.file(path, (*place, name))
        return self.part(said, ("teachers",), ("weights",)), files

    def pairs(self, said: Any, networks: Mapping[str, Network], methods: Mapping[str, Method]) -> tuple[Pair, ...]:
        if not isinstance(said, list):
            raise self.error(("pairs",), "pairs is a list, such as - {teacher: resnet56, student: resnet20}.")
        pairs: dict[str, Pair] = {}
        for number, each in enumerate(said):
            place: Place = ("pairs", number)
            known = self.source.mapping(each, place)
            roles = {key: known[key] for key in known if key not in ("name", "configs", "options", "methods")}
            for role, name in roles.items():
                if not isinstance(name, str) or name not in networks:
                    raise self.error(
                        (*place, role),
                        f"there is no network {name!r}; the nearest are {nearest(str(name), networks)}.",
                    )
            title = str(known.get("name", " → ".join(roles[role] for role in sorted(roles, key=_order))))
            if title in pairs:
                first = self.source.line(pairs[title].part.place)
                raise self.error(place, f"the pair {title!r} is here twice, first in line {first}.")
            part = self.part({key: known[key] for key in ("configs", "options") if key in known}, place)
            special: dict[str, Part | None] = {}
            for name, more in self.source.mapping(known.get("methods"), (*place, "methods")).items():
                where: Place = (*place, "methods", name)
                if name not in methods:
                    raise self.error(where, f"there is no method {name!r}; the nearest are {nearest(name, methods)}.")
                special[name] = None if more is None else self.part(more, where)
            for method in methods.values():
                missing = set(method.networks.values()) - roles.keys()
                if missing and special.get(method.name, part) is not None:
                    raise self.error(place, f"this pair names no {sorted(missing)[0]!r}, which {method.name!r} needs.")
            pairs[title] = Pair(title, {role: networks[name] for role, name in roles.items()}, part, special)
        return tuple(pairs.values())


def _order(role: str) -> tuple[int, str]:
    """The teacher first, the student last, as papers name a pair."""
    return {"teacher": 0, "student": 2}.get(role, 1), role


def _short(path: Path) -> Path:
    """Relative to the working directory where it lies in there."""
    try:
        return path.relative_to(Path.cwd())
    except ValueError:
        return path
