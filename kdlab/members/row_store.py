"""Rows of numbers in memory-mapped files that several processes fill and read at once: one teacher's outputs."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import mmap
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import numpy.typing as npt

from kdlab.errors import InputError
from kdlab.files import atomic_write

FORMAT = 1

Values = npt.NDArray[np.generic]
# Of each view of a batch: its name ("" for the batch itself), its rows in the store, and how many the store has of it.
Places = tuple[str, npt.NDArray[np.int64], int]
_Words = npt.NDArray[np.uint64]


class Rows:
    """A file of (rows, width) numbers, each row with a checksum that marks it as valid.

    The file holds one 64-bit checksum a row (0: absent), then the rows, each filled up to whole 64-bit words. It is
    created in full and empty at once, so that a full disk is an error here and not a crash at a later write.

    Args:
        path: the file; made if it is not there.
        rows: how many rows it has.
        width: how many numbers a row has.
        dtype: of the numbers.

    Raises:
        InputError: the file cannot be made or has another size.
    """

    def __init__(self, path: Path, rows: int, width: int, dtype: str) -> None:
        self.path, self.rows, self.width, self.dtype = path, rows, width, np.dtype(dtype)
        size = self.size(rows, width, dtype)
        if not path.exists():
            _create(path, size)
        with refused(path), path.open("r+b") as file:
            found = os.fstat(file.fileno()).st_size
            if found != size:
                raise InputError(
                    f"'{path}' has {found} bytes, where {rows} rows of {width} {dtype} take {size}: delete the file."
                )
            whole = np.frombuffer(mmap.mmap(file.fileno(), size), np.uint64)
        self._sums, self._words = whole[:rows], whole[rows:].reshape(rows, -1)
        self._weights = _odd(self._words.shape[1])

    @staticmethod
    def size(rows: int, width: int, dtype: str) -> int:
        """Return the size of such a file in bytes."""
        return rows * 8 * (1 + -(-width * np.dtype(dtype).itemsize // 8))

    def count(self) -> int:
        """Return how many rows have a checksum."""
        return int(np.count_nonzero(self._sums))

    # No locks: a reader copies a row and its checksum and believes the copy only if the two agree. Whatever came
    # between (a kill, a lost page, two writers with different bits at once, a writer seen half-way), numbers and
    # checksum then disagree, and the row is absent: it is written again, which is all that a lock would have saved.

    def read(self, places: npt.NDArray[np.int64]) -> tuple[Values, npt.NDArray[np.bool_]]:
        """Return the rows at ``places``, (b, width), and whether each is valid, (b,); others hold any numbers.

        Raises:
            InputError: a place is outside the file.
        """
        self._inside(places)
        words = self._words.take(places, 0)
        present = self._sums.take(places) == self._checksums(words)
        return words.view(self.dtype)[:, : self.width], present

    def write(self, places: npt.NDArray[np.int64], values: Values) -> None:
        """Write ``values``, (b, width), at ``places``; of a place that is named twice, the last row counts.

        Raises:
            InputError: a number is not finite, or a place is outside the file.
        """
        self._inside(places)
        if self.dtype.kind == "f" and not np.isfinite(values).all():
            raise not_finite(self.dtype.name)
        words = np.zeros((len(places), self._words.shape[1]), np.uint64)
        words.view(self.dtype)[:, : self.width] = values
        self._words[places] = words
        self._sums[places] = self._checksums(words)

    def _checksums(self, words: _Words) -> _Words:
        """Return sums of the words times odd weights, never 0: a change of one word changes the sum."""
        mixed = words ^ (words >> np.uint64(32))  # else the last number of a word reaches a few high bits only
        mixed *= self._weights
        sums: _Words = mixed.sum(1, dtype=np.uint64)
        sums += sums == 0
        return sums

    def _inside(self, places: npt.NDArray[np.int64]) -> None:
        if len(places) and not (places.min() >= 0 and places.max() < self.rows):
            raise InputError(
                f"The batch has sample indices from {places.min()} to {places.max()}, but '{self.path}' has "
                f"{self.rows} rows: every sample's index must be its position in the data set."
            )


class Store:
    """One teacher's folder, with a file of rows for each view number, view and kind of output once one is written.

    The folder's name is a hash of ``about``; ``key.json`` in it holds the whole for a person to read. A file's name
    ends with the width of the outputs, so that a process that only reads need not ask the teacher for it.

    Args:
        folder: where the teacher's folder lies.
        about: all that the numbers depend on, with ``dtype`` and ``top_k``.

    Raises:
        InputError: the folder describes something else than its name does, or cannot be read.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any]) -> None:
        text = json.dumps({"format": FORMAT, **about}, sort_keys=True, separators=(",", ":"))
        self.key = json.loads(text)
        self.folder = folder / hashlib.sha256(text.encode()).hexdigest()[:32]
        self.widths: dict[str, int] = {}
        self._files: dict[Path, Rows] = {}
        self._described()

    def __getstate__(self) -> dict[str, Any]:
        """Leave open files out: a copy opens them again."""
        return {**self.__dict__, "_files": {}}

    def form(self, kind: str, width: int) -> tuple[int, str]:
        """Return width and dtype of the rows for outputs of ``width``: the k highest logits are packed as bytes."""
        k, dtype = self.key["top_k"], self.key["dtype"]
        if k is None or kind != "logits":
            return width, dtype
        return (k + 1) * np.dtype(dtype).itemsize + k * (2 if width <= 32767 else 4), "uint8"

    def path(self, view: int, name: str, kind: str, width: int) -> Path:
        """Return the file of one kind of output on the view ``name`` of view number ``view``."""
        return self.folder / f"{view:05d}-{quote(name, safe='')}-{kind}-{width}"

    def close(self) -> None:
        """Close the open files."""
        self._files.clear()

    def read(self, view: int, kind: str, parts: Sequence[Places]) -> Values | None:
        """Return the rows of all parts, or ``None`` if any is missing."""
        if kind not in self.widths:
            self._learn()
        values = []
        for name, places, rows in parts:
            path = self.path(view, name, kind, self.widths.get(kind, 0))
            if path not in self._files and not path.exists():
                return None
            own, present = self._file(path, kind, rows).read(places)
            if not present.all():
                return None
            values.append(own)
        return np.concatenate(values)

    def fill(self, view: int, kind: str, parts: Sequence[Places], fresh: Values) -> Values:
        """Write the missing rows of all parts, and return what :meth:`read` returns from then on."""
        assert len(fresh) == sum(len(places) for _, places, _ in parts)
        self._make()
        values, start = [], 0
        for name, places, rows in parts:
            file = self._file(self.path(view, name, kind, self.widths[kind]), kind, rows)
            own, start = fresh[start : start + len(places)], start + len(places)
            _, present = file.read(places)
            file.write(places[~present], own[~present])
            kept, present = file.read(places)  # not what was just written where a row is named twice
            kept[~present] = own[~present]  # another process is writing this very row
            values.append(kept)
        return np.concatenate(values)

    def _file(self, path: Path, kind: str, rows: int) -> Rows:
        if path not in self._files:
            self._files[path] = Rows(path, rows, *self.form(kind, self.widths[kind]))
        return self._files[path]

    def _learn(self) -> None:
        """Read the widths from the names of existing files."""
        if self._described():
            for path in self.folder.iterdir():
                _, kind, width = ("--" + path.name).rsplit("-", 2)
                if width.isdecimal():
                    self.widths[kind] = int(width)

    def _described(self) -> bool:
        """Return whether ``key.json`` exists; raise an error if it describes something else."""
        path = self.folder / "key.json"
        try:
            with refused(self.folder):
                if not path.exists():
                    return False
                same = json.loads(path.read_bytes()) == self.key
        except (json.JSONDecodeError, UnicodeDecodeError):
            same = False
        if not same:
            raise InputError(f"'{path}' describes something else than its folder's name does: delete the folder.")
        return True

    def _make(self) -> None:
        """Make the folder with its description, before any row."""
        if self._files:
            return
        with refused(self.folder):
            if not self._described():
                with atomic_write(self.folder / "key.json", "w") as file:
                    file.write(json.dumps(self.key, indent=1, sort_keys=True) + "\n")


def not_finite(dtype: str) -> InputError:
    """Return the error for numbers that cannot be stored."""
    large = ", or too large for float16" if dtype == "float16" else ""
    return InputError(f"The teacher gives a number that is not finite{large}: it cannot be cached.")


def _odd(count: int) -> _Words:
    """Return odd numbers with well-mixed bits, the same on every machine (SplitMix64)."""
    mixed = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (mixed ^ (mixed >> np.uint64(31))) | np.uint64(1)


def _create(path: Path, size: int) -> None:
    """Make a file of zeros that appears in full size: of several processes that make it at once, one succeeds."""
    own = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    with refused(path):
        try:
            with own.open("xb") as file:
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file.fileno(), 0, size)
                else:  # macOS: a file that was only lengthened would not yet have its space
                    for start in range(0, size, 1 << 20):
                        file.write(bytes(min(1 << 20, size - start)))
            with contextlib.suppress(FileExistsError):
                os.link(own, path)
        finally:
            own.unlink(missing_ok=True)


@contextlib.contextmanager
def refused(path: Path) -> Iterator[None]:
    """Turn an error of the operating system into an InputError with a hint."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        hint = ": make room, lower views, or use top_k or float16" if full else ": choose another folder"
        raise InputError(f"The teacher cache cannot use '{path}' ({error.strerror}){hint}.") from error
