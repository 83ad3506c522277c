"""The exception type for input that a user has to change."""

from __future__ import annotations

import difflib
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar


class InputError(ValueError):
    """Input that cannot work; the message says what is wrong, where, and what to change.

    The command line prints the message alone, without a traceback, and exits with status 2.

    Args:
        message: one sentence.
        key: dotted key of the config option that is wrong, such as ``model.optimizer.lr``; empty if there is none.
        value: text of the value that is wrong, such as a class path; empty if there is none.
    """

    status: ClassVar[int] = 2

    def __init__(self, message: str = "", *, key: str = "", value: str = "") -> None:
        super().__init__(message)
        self.key, self.value = key, value


class ExportMismatchError(InputError):
    """An exported file whose outputs or accuracy differ from the network's; the command line exits with status 3."""

    status: ClassVar[int] = 3


def nearest(name: str, names: Iterable[str], count: int = 5) -> str:
    """Return the names most like ``name``, as text for the end of an error message."""
    names = list(names)
    close = difflib.get_close_matches(name, names, n=count, cutoff=0.3) or names[:count]
    return ", ".join(map(repr, close))


def check_word(name: str, value: str, words: Sequence[str]) -> None:
    """Raise an :class:`InputError` if an argument is none of a few words."""
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
    """Return the :class:`InputError` that ``error`` is or was raised from, if there is one."""
    return next((cause for cause in causes(error) if isinstance(cause, InputError)), None)


def failed_import(error: BaseException) -> InputError | None:
    """Return why a module could not be imported, with file and line, if ``error`` is or was raised from that."""
    for cause in causes(error):
        if isinstance(cause, SyntaxError) and cause.filename and Path(cause.filename).is_file():
            return InputError(f"{cause.filename}, line {cause.lineno}: {cause.msg}.")
        frames = [frame for frame in traceback.extract_tb(cause.__traceback__) if frame.name == "<module>"]
        if frames and not isinstance(cause, InputError):
            return InputError(f"{frames[-1].filename}, line {frames[-1].lineno}: {type(cause).__name__}: {cause}.")
    return None


def causes(error: BaseException) -> Iterator[BaseException]:
    """Iterate over an error, what it was raised from, and so on; one that is raised from itself ends it."""
    cause: BaseException | None = error
    passed = set[int]()
    while cause is not None and id(cause) not in passed:
        passed.add(id(cause))
        yield cause
        cause = cause.__cause__ or cause.__context__
