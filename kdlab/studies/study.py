"""Study files: a recipe, networks, pairs of them, methods and seeds."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kdlab.config.located_yaml import Place, Source
from kdlab.errors import InputError, nearest
from kdlab.export.formats import requirements

KEYS = (
    *("title", "paper", "recipe", "networks", "teachers", "pairs", "methods", "baseline", "reference", "seeds"),
    *("published", "measured", "note", "export"),
)
TEACHER = {"model.student": "student", "model.teacher": "teacher"}
QUOTED = re.compile(r"\$(\w+)\.(\w+)")


@dataclass(frozen=True)
class Part:
    """Changes to a run's config: config files, then single options as of ``kdlab fit --KEY=VALUE``."""

    place: Place
    configs: tuple[Path, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Network:
    """A network by its class path, and its variables, which options may quote as ``$student.NAME``.

    Attributes:
        part: changes for every run that trains it.
        members: of an ensemble, which is only a teacher and has nothing else.
    """

    name: str
    build: Mapping[str, Any]
    quoted: Mapping[str, Any]
    part: Part = Part(())
    members: tuple[Network, ...] = ()

    @property
    def networks(self) -> tuple[Network, ...]:
        """Return the members of an ensemble, else the network itself."""
        return self.members or (self,)


@dataclass(frozen=True)
class Method:
    """Changes to the recipe, the role by the option that its network is put into, and the seeds.

    Attributes:
        start: the method whose student, of the same pair and seed, this one starts from; its options may quote the
            student with these weights as ``$student.start``.
    """

    name: str
    part: Part
    networks: Mapping[str, str]
    seeds: tuple[int, ...]
    start: str | None = None

    @property
    def taught(self) -> bool:
        """Return whether a frozen teacher takes part."""
        return "teacher" in self.networks.values()


@dataclass(frozen=True)
class Pair:
    """Networks by role, changes for all methods and for single ones; ``None`` where the study leaves a method out."""

    name: str
    roles: Mapping[str, Network]
    part: Part
    methods: Mapping[str, Part | None]


@dataclass(frozen=True)
class Study:
    """Content of a study file, of which only file names were checked.

    Attributes:
        teachers: changes for teachers; ``None`` where teachers are used as their class paths build them.
        weights: files of teachers that are not trained here, by the network's name.
        measured: file of accuracies that were measured here, but not as runs of the study.
        export: the file that is made of each student for its ledger: format, int8, calibrate; empty for none.
    """

    source: Source
    name: str
    title: str
    recipe: Part
    teachers: Part | None
    weights: Mapping[str, Path]
    pairs: tuple[Pair, ...]
    methods: tuple[Method, ...]
    baseline: str
    reference: str | None
    published: Path | None
    note: str
    measured: Path | None = None
    export: Mapping[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """Return the folder of the study file."""
        return self.source.path.parent

    def part(self, pairs: Sequence[str] = (), methods: Sequence[str] = ()) -> Study:
        """Return the study with these pairs and methods alone; all of them where none is named.

        Raises:
            InputError: the study has no such pair or method.
        """
        for kind, names, known in (("pair", pairs, self.pairs), ("method", methods, self.methods)):
            for name in names:
                if all(name != one.name for one in known):
                    close = nearest(name, [one.name for one in known])
                    raise InputError(f"The study {self.name!r} has no {kind} {name!r}; the nearest are {close}.")
        return replace(
            self,
            pairs=tuple(pair for pair in self.pairs if not pairs or pair.name in pairs),
            methods=tuple(method for method in self.methods if not methods or method.name in methods),
        )


def read(path: Path, weights: Mapping[str, Path] | None = None) -> Study:
    """Read a study from its file, or from the folder that holds it as ``study.yaml``.

    Args:
        path: the file or the folder.
        weights: files of teachers by the network's name, beside or instead of those of the study.

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
        self.source, self.error, self.mapping = source, source.error, source.mapping

    def study(self, weights: Mapping[str, Path]) -> Study:
        content = self.mapping(self.source.content, (), KEYS)
        for key in ("networks", "pairs", "methods"):
            if not content.get(key):
                raise self.error((), f"a study has {key}: this one has none.")
        seeds = self.seeds(content.get("seeds", [0]), ("seeds",))
        entries = {key: self.mapping(content[key], (key,)).items() for key in ("networks", "methods")}
        networks = {name: self.network(name, value) for name, value in entries["networks"]}
        methods = dict[str, Method]()
        for name, value in entries["methods"]:
            methods[name] = self.method(name, value, seeds, methods)
        baseline, reference = content.get("baseline", next(iter(methods))), content.get("reference") or None
        self.known("method", baseline, methods, ("baseline",))
        if reference is not None:
            self.known("method", reference, methods, ("reference",))
        pairs = self.pairs(content["pairs"], networks, methods)
        teachers, files = self.teachers(content.get("teachers"), networks)
        if unknown := [name for name in weights if name not in networks]:
            hint = f"the nearest are {nearest(unknown[0], networks)}"
            raise InputError(f"{self.source.path} has no network {unknown[0]!r}; {hint}.")
        path = self.source.path.resolve()
        return Study(
            source=self.source,
            name=path.parent.name if path.name == "study.yaml" else path.stem,
            title=str(content.get("title", "")),
            recipe=self.part(content.get("recipe"), ("recipe",)),
            teachers=teachers,
            weights={**files, **weights},
            pairs=pairs,
            methods=tuple(methods.values()),
            baseline=baseline,
            reference=reference,
            published=self.file(content["published"], ("published",)) if content.get("published") else None,
            note=str(content.get("note", "")),
            measured=self.file(content["measured"], ("measured",)) if content.get("measured") else None,
            export=self.export(content.get("export")),
        )

    def known(self, kind: str, name: Any, names: Collection[str], place: Place) -> None:
        if not isinstance(name, str) or name not in names:
            raise self.error(place, f"there is no {kind} {name!r}; the nearest are {nearest(str(name), names)}.")

    def file(self, name: Any, place: Place) -> Path:
        if not isinstance(name, str):
            raise self.error(place, f"this is the path of a file, not {name!r}.")
        path = (self.source.path.parent / name).resolve()
        if not path.is_file():
            raise self.error(place, f"there is no file {name!r} (looked for {str(path)!r}).")
        # Relative to the working directory where it lies in there: a resolved config is the same in every checkout.
        return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path

    def part(self, value: Any, place: Place, others: tuple[str, ...] = ()) -> Part:
        content = self.mapping(value, place, ("configs", "options", *others))
        configs = content.get("configs") or []
        if not isinstance(configs, list):
            raise self.error((*place, "configs"), "configs is a list of files.")
        files = tuple(self.file(name, (*place, "configs", index)) for index, name in enumerate(configs))
        for path in files:
            Source(path)  # raises for what is not YAML, and for a duplicate key, with the file's own line
        options = self.mapping(content.get("options"), (*place, "options"))
        if "seed_everything" in options and place[0] not in ("teachers", "networks"):
            where = (*place, "options", "seed_everything")
            raise self.error(where, "set the seeds of students under seeds, of the study or of a method.")
        return Part(place, files, options)

    def network(self, name: str, value: Any) -> Network:
        place = ("networks", name)
        content = {"class_path": value} if isinstance(value, str) else self.mapping(value, place)
        if not isinstance(content.get("class_path"), str):
            raise self.error(place, f"the network {name!r} has a class_path, such as kdlab.models.resnet20.")
        build = {key: content.pop(key) for key in ("class_path", "init_args") if key in content}
        part = self.part({key: content.pop(key) for key in ("configs", "options") if key in content}, place)
        return Network(name, build, content, part)

    def role(self, role: str, value: Any, networks: Mapping[str, Network], place: Place) -> Network:
        """Return the network of a role; of several teachers the ensemble."""
        if not isinstance(value, list):
            self.known("network", value, networks, (*place, role))
            return networks[value]
        if role != "teacher" or not value:
            raise self.error((*place, role), "a role is one network; only a teacher may be a list of them.")
        for index, name in enumerate(value):
            self.known("network", name, networks, (*place, role, index))
        return Network(" + ".join(value), {}, {}, members=tuple(networks[name] for name in value))

    def method(self, name: str, value: Any, seeds: tuple[int, ...], before: Mapping[str, Method]) -> Method:
        place = ("methods", name)
        part, content = self.part(value, place, ("networks", "seeds", "start")), self.mapping(value, place)
        networks = self.mapping(content.get("networks", TEACHER), (*place, "networks"))
        for key, role in networks.items():
            if not isinstance(role, str):
                raise self.error((*place, "networks", key), f"this is a role, such as student, not {role!r}.")
        if "student" not in networks.values():
            roles = ", ".join(map(repr, networks.values())) or "nothing"
            text = f"the method {name!r} places {roles}, and the network 'student' nowhere."
            raise self.error((*place, "networks"), text)
        if (start := content.get("start")) is not None:
            self.known("method before this one", start, before, (*place, "start"))
        return Method(name, part, networks, self.seeds(content.get("seeds", list(seeds)), (*place, "seeds")), start)

    def export(self, value: Any) -> dict[str, Any]:
        options = self.mapping(value, ("export",), ("format", "int8", "calibrate"))
        if options:
            with self.source.errors_at(("export",)):
                requirements(str(options.get("format")), int8=bool(options.get("int8")))
        return options

    def seeds(self, value: Any, place: Place) -> tuple[int, ...]:
        numbers = isinstance(value, list) and all(type(seed) is int and 0 <= seed < 2**32 for seed in value)
        if not numbers or not value:
            text = f"seeds is a list of whole numbers from 0 to {2**32 - 1}, such as [0, 1, 2], not {value!r}."
            raise self.error(place, text)
        for index, seed in enumerate(value):
            if seed in value[:index]:
                raise self.error((*place, index), f"the seed {seed} is there twice.")
        return tuple(value)

    def teachers(self, value: Any, networks: Mapping[str, Network]) -> tuple[Part | None, dict[str, Path]]:
        if value is None:
            return None, {}
        files, place = {}, ("teachers", "weights")
        for name, path in self.mapping(self.mapping(value, ("teachers",)).get("weights"), place).items():
            self.known("network", name, networks, (*place, name))
            files[name] = self.file(path, (*place, name))
        return self.part(value, ("teachers",), ("weights",)), files

    def pairs(self, value: Any, networks: Mapping[str, Network], methods: Mapping[str, Method]) -> tuple[Pair, ...]:
        if not isinstance(value, list):
            raise self.error(("pairs",), "pairs is a list, such as - {teacher: resnet56, student: resnet20}.")
        pairs: dict[str, Pair] = {}
        for index, content in enumerate(value):
            pair = self.pair(self.mapping(content, ("pairs", index)), ("pairs", index), networks, methods)
            if pair.name in pairs:
                first = self.source.line(pairs[pair.name].part.place)
                raise self.error(pair.part.place, f"the pair {pair.name!r} is here twice, first in line {first}.")
            pairs[pair.name] = pair
        return tuple(pairs.values())

    def pair(
        self, content: dict[str, Any], place: Place, networks: Mapping[str, Network], methods: Mapping[str, Method]
    ) -> Pair:
        title, changes = content.pop("name", None), self.mapping(content.pop("methods", None), (*place, "methods"))
        part = self.part({key: content.pop(key) for key in ("configs", "options") if key in content}, place)
        roles = {role: self.role(role, name, networks, place) for role, name in content.items()}
        special: dict[str, Part | None] = {}
        for name, change in changes.items():
            self.known("method", name, methods, (*place, "methods", name))
            special[name] = None if change is None else self.part(change, (*place, "methods", name))
        for method in methods.values():
            missing = set(method.networks.values()) - content.keys()
            if missing and special.get(method.name, part) is not None:
                raise self.error(place, f"this pair names no {min(missing)!r}, which {method.name!r} needs.")
        title = title or " → ".join(roles[role].name for role in sorted(roles, key=_order))
        return Pair(str(title), roles, part, special)


def _order(role: str) -> tuple[int, str]:
    """Sort the teacher first and the student last, as papers name a pair."""
    return {"teacher": 0, "student": 2}.get(role, 1), role
