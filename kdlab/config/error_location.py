"""Map a config error to the YAML file and line that caused it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from kdlab.config.located_yaml import Place, Source, ends_with
from kdlab.errors import InputError


class Origin(NamedTuple):
    """Part of a YAML file with options of a config; ``prefix`` is the dotted key of the option that it fills."""

    source: Source
    place: Place = ()
    prefix: str = ""


def locate(
    error: InputError, origins: Iterable[Origin], overrides: Sequence[str] = (), default: Origin | None = None
) -> InputError:
    """Return the error with the file and line of its key or of its value.

    Options of the command line, ``overrides``, precede all files; of the origins the first match counts, else
    ``default`` is named.
    """
    for option in overrides:
        name, _, value = option.lstrip("-").partition("=")
        if ends_with(name, error.key) or (error.value and value == error.value):
            return InputError(f"On the command line, {error}", key=error.key, value=error.value)
    for source, below, prefix in origins:
        place = source.place(error.key.removeprefix(f"{prefix}."), below) or source.holding(error.value, below)
        if place is not None:
            return source.error(place, str(error))
    return default.source.error(default.place, str(error)) if default else error
