"""The one exception for input that a person has to change."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Something the user gave cannot work; the message is one sentence that says what to change.

    The command line prints the message alone, without a traceback, and exits with status 2.
    """


def nearest(name: str, names: Iterable[str], count: int = 5) -> str:
    """The names most like ``name``, as text for the end of an error message."""
    names = list(names)
    found = difflib.get_close_matches(name, names, n=count, cutoff=0.3) or names[:count]
    return ", ".join(repr(each) for each in found)


def refusal_in(error: BaseException) -> InputError | None:
    """The :class:`InputError` that ``error`` is or was raised from, if there is one."""
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, InputError):
        seen = seen.__cause__ or seen.__context__
    return seen
