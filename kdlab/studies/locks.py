"""A lock that dies with its process."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kdlab.errors import InputError


@contextmanager
def locked(path: Path, complaint: str, wait: bool = False) -> Iterator[None]:
    """Hold the lock of ``path``, which the system gives back when the process ends, however it ends.

    Args:
        path: a file, made if missing; its content does not matter.
        complaint: what to say where another process has it, such as "the ledger is in use".
        wait: wait for it instead.

    Raises:
        InputError: another process has it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            raise InputError(f"{complaint[:1].upper()}{complaint[1:]}: wait until it is done, or stop it.") from error
        yield
