"""Atomic file writes, small text and JSON files, and file locks."""

from __future__ import annotations

import errno
import fcntl
import glob
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

from filelock import FileLock, Timeout

from kdlab.errors import InputError, causes

UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EEXIST, errno.ENOTDIR)
"""Numbers of the system's errors for a disk that is full, and for a folder that cannot be written."""


@contextmanager
def atomic_write(path: Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a file beside ``path`` that replaces ``path`` when the block ends, and is deleted when the block raises.

    Whatever interrupts the write, ``path`` holds either its old content or the whole new one. The folder is created.
    In mode ``"w"`` line ends are written as they are.

    Raises:
        InputError: the disk is full, read-only or fails otherwise.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with file_beside(path, mode) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.replace(file.name, path)
    except (OSError, RuntimeError) as error:  # torch.save raises the latter from the former
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        raise InputError(
            f"{str(path)!r} cannot be written ({cause.strerror or cause}), and is what it was before: make room, or "
            "choose another folder."
        ) from error


@contextmanager
def file_beside(path: Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a new file ``.NAME.*.tmp`` beside ``path``, deleted at the end; those of killed processes are deleted first.

    A writer holds a lock on its file, which the operating system releases when the process ends, however it ends.
    """
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        with suppress(OSError), left.open("rb") as file:  # locked, or a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            left.unlink()
    beside = path.with_name(f".{path.name}.{uuid4().hex[:12]}.tmp")
    try:
        while True:
            with beside.open(mode, newline=None if "b" in mode else "") as file:
                with suppress(OSError):
                    fcntl.flock(file, fcntl.LOCK_EX)
                if os.fstat(file.fileno()).st_nlink:  # else it was deleted before it was locked
                    yield file
                    break
    finally:
        with suppress(OSError):
            beside.unlink()


def write_text(path: Path, text: str) -> None:
    """Write ``text``; folders are created."""
    with atomic_write(path, "w") as file:
        file.write(text)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as JSON; floats keep every bit."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the object in a JSON file; ``None`` where there is no file, or one that a full disk left unreadable."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


@contextmanager
def locked(path: Path, complaint: str, wait: bool = False) -> Iterator[None]:
    """Hold the lock of ``path``; the operating system releases it when the process ends, however it ends.

    Where another process holds it, wait, or raise an :class:`InputError` with ``complaint``: "the ledger is in use".
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=-1 if wait else 0)
    except Timeout as error:
        raise InputError(f"{complaint[:1].upper()}{complaint[1:]}: wait until it is done, or stop it.") from error
    try:
        yield
    finally:
        lock.release()


def unwritable(error: BaseException) -> InputError | None:
    """Return which file could not be written and why, if ``error`` is or was raised from that."""
    for cause in causes(error):
        if isinstance(cause, OSError) and cause.errno in UNWRITABLE:
            return InputError(f"{str(cause.filename or 'A file')!r} cannot be written: {cause.strerror}.")
    return None
