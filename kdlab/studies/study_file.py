"""The reader of study files, which refuses every mistake with its file and line."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from kdlab.config.located_yaml import Place, Source
from kdlab.errors import InputError, nearest
from kdlab.export.formats import requirements
from kdlab.studies.study import KEYS, TEACHER, Method, Network, Pair, Part, Study


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
