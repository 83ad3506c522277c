"""YAML with the line of every part, so that an error can name it."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from kdlab.errors import InputError, nearest

Place = tuple[Hashable, ...]
"""Keys and indices that lead to a part of a file."""
MERGE = "tag:yaml.org,2002:merge"


def ends_with(longer: str, key: str) -> bool:
    """Return whether a dotted key is another, or its last parts; ``init_args`` may be left out of both."""
    long, short = ([part for part in name.split(".") if part != "init_args"] for name in (longer, key))
    return bool(short) and long[-len(short) :] == short


class Source:
    """Content of a YAML file, with the line of each of its parts.

    Attributes:
        path: the file.
        content: plain dicts, lists and values.

    Raises:
        InputError: there is no such file, it is not YAML, or a mapping has a key twice (YAML's readers keep the last
            without a warning).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lines: dict[Place, int] = {}
        self._values: dict[Place, Any] = {}
        try:
            loader = yaml.SafeLoader(path.read_text())
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"The file {str(path)!r} cannot be read: {error}.") from error
        try:
            node = loader.get_single_node()
            self.content = {} if node is None else self._read(loader, node, ())
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            where = f", line {mark.line + 1}" if mark else ""
            raise InputError(f"{path}{where}: this is not YAML: {getattr(error, 'problem', error)}.") from error
        finally:
            loader.dispose()

    def line(self, place: Place) -> int:
        """Return the line of a part, from 1; of a part that is missing, the line of what it is missing in."""
        while place and place not in self._lines:
            place = place[:-1]
        return self._lines.get(place, 1)

    def place(self, key: str, below: Place = ()) -> Place | None:
        """Return the first place below a part whose dotted key ends with ``key``; ``None`` if there is none."""
        matches = (place for place in self._below(below) if ends_with(".".join(map(str, place[len(below) :])), key))
        return next(matches, None) if key else None

    def holding(self, text: str, below: Place = ()) -> Place | None:
        """Return the first place below a part whose value is ``text``, or that followed by a dot."""
        values = ((place, self._values[place]) for place in self._below(below))
        matches = (place for place, value in values if isinstance(value, str) and f"{value}.".startswith(f"{text}."))
        return next(matches, None) if text else None

    def error(self, place: Place, text: str) -> InputError:
        """Return an error that names the line of a part."""
        return InputError(f"{self.path}, line {self.line(place)}: {text}")

    @contextmanager
    def errors_at(self, place: Place, prefix: str = "") -> Iterator[None]:
        """Add the line of a part to an :class:`InputError` that is raised inside."""
        try:
            yield
        except InputError as error:
            raise self.error(place, f"{prefix}{error}") from error

    def mapping(self, value: Any, place: Place, allowed: Iterable[str] | None = None) -> dict[str, Any]:
        """Return ``value`` as a mapping; ``None`` is an empty one.

        Raises:
            InputError: it is something else, or has another key than ``allowed``.
        """
        what = ".".join(map(str, place)) or "the study"
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            raise self.error(place, f"{what} is a mapping of names, not {value!r}.")
        for key in value:
            if not isinstance(key, str):
                raise self.error((*place, key), f"names in {what} are text: write {str(key)!r} in quotes.")
            if allowed is not None and key not in (names := list(allowed)):
                raise self.error((*place, key), f"{what} has no {key!r}; the nearest are {nearest(key, names, 8)}.")
        return dict(value)

    def _below(self, below: Place) -> Iterator[Place]:
        return (place for place in self._lines if place[: len(below)] == below)

    def _read(self, loader: yaml.SafeLoader, node: yaml.Node, place: Place) -> Any:
        self._lines.setdefault(place, _line(node))
        if isinstance(node, yaml.SequenceNode):
            value: Any = [self._read(loader, item, (*place, index)) for index, item in enumerate(node.value)]
        elif isinstance(node, yaml.MappingNode):
            value = self._read_mapping(loader, node, place)
        else:
            value = self._scalar(loader, node)
        self._values[place] = value
        return value

    def _read_mapping(self, loader: yaml.SafeLoader, node: yaml.MappingNode, place: Place) -> dict[Any, Any]:
        seen: dict[Any, int] = {}
        for key, _ in node.value:
            if key.tag == MERGE:
                continue
            name = self._scalar(loader, key)
            if not isinstance(name, Hashable):
                raise InputError(f"{self.path}, line {_line(key)}: {name!r} cannot be a name: put it in quotes.")
            if name in seen:
                raise InputError(f"{self.path}, line {_line(key)}: {name!r} is here twice, first in line {seen[name]}.")
            seen[name] = _line(key)
        loader.flatten_mapping(node)
        content = {}
        for key, value in node.value:
            name = loader.construct_object(key, deep=True)
            if name in seen:
                self._lines[(*place, name)] = _line(key)
            content[name] = self._read(loader, value, (*place, name))
        return content

    def _scalar(self, loader: yaml.SafeLoader, node: yaml.Node) -> Any:
        try:
            return loader.construct_object(node, deep=True)
        except ValueError as error:  # of a date such as 2024-13-45
            raise InputError(f"{self.path}, line {_line(node)}: {error}: put it in quotes.") from error


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1
