"""Who may fill a store of rows on a shared disk, and reading ahead from the disk."""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any


class Filling:
    """The permission to write into a store's folder, for the processes of one machine at a time.

    Processes of one machine write into the same pages of memory. On a disk that several machines share, each machine
    writes whole pages, with its own state of the rows beside: rows of the other would be lost, and have to be written
    again. So the first process to write locks ``.filling``, which names its machine, until it ends; processes of other
    machines read what is there and run the teacher for the rest. On a file system without locks all may write.

    Args:
        folder: of the store.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / ".filling"
        self._locked: int | None = None  # the open file, whose lock ends with this object or its process

    def __getstate__(self) -> dict[str, Any]:
        """Leave the lock out: a copy asks for it again."""
        return {**self.__dict__, "_locked": None}

    def granted(self) -> bool:
        """Return whether this process may write now."""
        if self._locked is not None:
            return True
        file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            name = os.read(file, 1024).decode()
            os.close(file)
            return name == platform.node()
        except OSError:
            os.close(file)
            return True
        os.ftruncate(file, 0)
        os.write(file, platform.node().encode())
        self._locked = file
        weakref.finalize(self, os.close, file)
        return True


def prefetch(paths: Sequence[Path]) -> None:
    """Read files into the operating system's memory in a thread, so that no look-up waits for the disk."""
    if hasattr(os, "posix_fadvise"):  # not on macOS
        threading.Thread(target=_read_ahead, args=(paths,), daemon=True).start()


def _read_ahead(paths: Sequence[Path]) -> None:
    for path in paths:
        with contextlib.suppress(OSError), path.open("rb") as file:  # it may not be there yet
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)
