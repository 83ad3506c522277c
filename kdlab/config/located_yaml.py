"""YAML that knows in which line everything stands, so that a mistake can be pointed at."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from kdlab.errors import InputError, nearest

Place = tuple[Hashable, ...]


def ends_with(longer: str, key: str) -> bool:
    """Whether a dotted key is another, or its last parts; ``init_args`` may be left out of both."""
    long, short = ([part for part in each.split(".") if part != "init_args"] for each in (longer, key))
    return bool(short) and long[len(long) - len(short) :] == short


class Source:
    """The content of a YAML file, and the line of each of its parts.

    Attributes:
        path: the file.
        content: what it says, as plain dicts, lists and values.

    Raises:
        InputError: there is no such file, it is not YAML, or a mapping has a key twice (YAML's readers keep the last
            and say nothing).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lines: dict[Place, int] = {}
        try:
            loader = yaml.SafeLoader(path.read_text())
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"The file {str(path)!r} cannot be read: {error}.") from error
        try:
            node = loader.get_single_node()
            self.content = {} if node is None else self._made(loader, node, ())
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            where = f", line {mark.line + 1}" if mark else ""
            raise InputError(f"{path}{where}: this is not YAML: {getattr(error, 'problem', error)}.") from error
        finally:
            loader.dispose()

    def line(self, place: Place) -> int:
        """The line in which a part stands, from 1; of one that is missing, the line of what it is missing in."""
        while place and place not in self._lines:
            place = place[:-1]
        return self._lines.get(place, 1)

    def place(self, key: str, below: Place = ()) -> Place | None:
        """Where a dotted key, or a longer one that ends with it, stands first below a part; ``None`` without a key."""
        for place in self._lines if key else ():
            inside = place[len(below) :]
            if inside and place[: len(below)] == below and ends_with(".".join(map(str, inside)), key):
                return place
        return None

    def holding(self, text: str, below: Place = ()) -> Place | None:
        """Where a text, or one that goes on with a dot, is first the value of something below a part."""
        for place in self._lines if text else ():
            value = self._value_at(place)
            if place[: len(below)] == below and isinstance(value, str) and f"{value}.".startswith(f"{text}."):
                return place
        return None

    def _value_at(self, place: Place) -> Any:
        value = self.content
        for each in place:
            value = value[each]
        return value

    def error(self, place: Place, text: str) -> InputError:
        """An error that names the line of a part."""
        return InputError(f"{self.path}, line {self.line(place)}: {text}")

    def mapping(self, value: Any, place: Place, allowed: Iterable[str] | None = None) -> dict[str, Any]:
        """``value``, which has to be a mapping, with no other keys than ``allowed``.

        Raises:
            InputError: it is something else, or has another key.
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

    def _made(self, loader: yaml.SafeLoader, node: yaml.Node, place: Place) -> Any:
        self._lines.setdefault(place, node.start_mark.line + 1)
        if isinstance(node, yaml.SequenceNode):
            return [self._made(loader, each, (*place, number)) for number, each in enumerate(node.value)]
        if not isinstance(node, yaml.MappingNode):
            return self._value(loader, node)
        seen: dict[Any, int] = {}
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                continue
            name, line = self._value(loader, key), key.start_mark.line + 1
            if not isinstance(name, Hashable):
                raise InputError(f"{self.path}, line {line}: {name!r} cannot be a name: put it in quotes.")
            if name in seen:
                raise InputError(f"{self.path}, line {line}: {name!r} is here twice, first in line {seen[name]}.")
            seen[name] = line
        loader.flatten_mapping(node)
        made = {}
        for key, value in node.value:
            name = loader.construct_object(key, deep=True)
            if name in seen:
                self._lines[(*place, name)] = key.start_mark.line + 1
            made[name] = self._made(loader, value, (*place, name))
        return made

    def _value(self, loader: yaml.SafeLoader, node: yaml.Node) -> Any:
        try:
            return loader.construct_object(node, deep=True)
        except ValueError as error:  # of a date such as 2024-13-45
            raise InputError(f"{self.path}, line {node.start_mark.line + 1}: {error}: put it in quotes.") from error
