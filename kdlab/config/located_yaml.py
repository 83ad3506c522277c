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
MOST = 100_000
"""Parts of a file."""


def ends_with(longer: str, key: str) -> bool:
    """Return whether a dotted key is another, or its last parts; ``init_args`` may be left out of both."""
    long, short = ([part for part in name.split(".") if part != "init_args"] for name in (longer, key))
    return bool(short) and long[-len(short) :] == short


class Source:
    """Content of a YAML file, with the line of each of its parts.

    ``content`` is plain dicts, lists and values. An :class:`InputError` if there is no such file, it is not YAML, a
    mapping has a key twice (YAML's readers keep the last without a warning), or a part holds itself.

    Args:
        path: the file.
        text: what it holds; read from the file if not given.
    """

    def __init__(self, path: Path, text: str | None = None) -> None:
        self.path = path
        self._lines: dict[Place, int] = {}
        self._texts: dict[Place, str] = {}
        self._count = 0
        try:
            loader = yaml.SafeLoader(path.read_text(encoding="utf-8") if text is None else text)
        except (OSError, UnicodeDecodeError, yaml.reader.ReaderError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"The file {str(path)!r} cannot be read as text: {reason}.") from error
        try:
            node = loader.get_single_node()
            if node is not None:
                self._walk(loader, node, ())
            self.content: Any = {} if node is None else loader.construct_document(node)
        except RecursionError as error:
            raise InputError(f"{path}: the parts are nested too deeply, or hold themselves.") from error
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
        places = (p for p in self._below(below) if ends_with(".".join(map(str, p[len(below) :])), key))
        return next(places, None) if key else None

    def holding(self, text: str, below: Place = ()) -> Place | None:
        """Return the first place below a part whose value is ``text``, or that followed by a dot."""
        places = (p for p in self._below(below) if p in self._texts and f"{self._texts[p]}.".startswith(f"{text}."))
        return next(places, None) if text else None

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
        """Return ``value`` as a mapping with text keys, all in ``allowed``; ``None`` is an empty one."""
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

    def _walk(self, loader: yaml.SafeLoader, node: yaml.Node, place: Place) -> None:
        """Note the line of a node and of all below; merge keys are replaced by what they name."""
        self._lines.setdefault(place, _line(node))
        self._count += 1
        if self._count > MOST:  # aliases of aliases grow without end
            raise InputError(f"{self.path}: there are more than {MOST:,} parts.")
        if isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                self._walk(loader, item, (*place, index))
        elif isinstance(node, yaml.MappingNode):
            self._walk_mapping(loader, node, place)
        elif isinstance(value := self._scalar(loader, node), str):
            self._texts[place] = value

    def _walk_mapping(self, loader: yaml.SafeLoader, node: yaml.MappingNode, place: Place) -> None:
        seen: dict[Any, int] = {}
        for key, _ in node.value:
            if key.tag == MERGE:
                continue
            name, where = self._scalar(loader, key), f"{self.path}, line {_line(key)}"
            if not isinstance(name, Hashable):
                raise InputError(f"{where}: {name!r} cannot be a name: put it in quotes.")
            if name in seen:
                raise InputError(f"{where}: {name!r} is here twice, first in line {seen[name]}.")
            seen[name] = _line(key)
        loader.flatten_mapping(node)
        for key, value in node.value:
            inner = (*place, self._scalar(loader, key))
            if inner[-1] in seen:
                self._lines[inner] = seen[inner[-1]]
            self._walk(loader, value, inner)

    def _scalar(self, loader: yaml.SafeLoader, node: yaml.Node) -> Any:
        try:
            return loader.construct_object(node, deep=True)
        except (ValueError, OverflowError) as error:  # of a date such as 2024-13-45
            raise InputError(f"{self.path}, line {_line(node)}: {error}: put it in quotes.") from error


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1
