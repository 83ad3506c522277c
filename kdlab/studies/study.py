"""Studies: a recipe, networks, pairs of them, methods and seeds."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kdlab.config.located_yaml import Place, Source
from kdlab.errors import InputError, nearest

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
