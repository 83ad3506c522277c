"""The one exception for input that a person has to change."""

from __future__ import annotations

import difflib
import traceback
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any


class InputError(ValueError):
    """Something the user gave cannot work; the message is one sentence that says what to change.

    The command line prints the message alone, without a traceback, and exits with status 2.
    """


def nearest(name: str, names: Iterable[str], count: int = 5) -> str:
    """The names most like ``name``, as text for the end of an error message."""
    names = list(names)
    found = difflib.get_close_matches(name, names, n=count, cutoff=0.3) or names[:count]
    return ", ".join(repr(each) for each in found)


def check_word(name: str, value: str, words: Sequence[str]) -> None:
    """Check that an argument is one of a few words.

    Raises:
        InputError: it is not.
    """
    if value not in words:
        raise InputError(f"{name} is {' or '.join(map(repr, words))}, not {value!r}.")


def form_of(value: Any) -> str:
    """Describe the form of a value for a message."""
    if isinstance(value, Mapping):
        return f"a mapping with {', '.join(map(repr, value)) or 'no keys'}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"


def refusal_in(error: BaseException) -> InputError | None:
    """The :class:`InputError` that ``error`` is or was raised from, if there is one."""
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, InputError):
        seen = seen.__cause__ or seen.__context__
    return seen


def failed_import(error: BaseException) -> InputError | None:
    """What stops a module from being imported, with file and line, if ``error`` is or was raised from that."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, SyntaxError) and seen.filename and Path(seen.filename).is_file():
            return InputError(f"{seen.filename}, line {seen.lineno}: {seen.msg}.")
        lines = [each for each in traceback.extract_tb(seen.__traceback__) if each.name == "<module>"]
        if lines and not isinstance(seen, InputError):
            return InputError(f"{lines[-1].filename}, line {lines[-1].lineno}: {type(seen).__name__}: {seen}.")
        seen = seen.__cause__ or seen.__context__
    return None
