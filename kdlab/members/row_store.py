"""Rows of numbers in a memory-mapped file that several processes fill and read at once."""

from __future__ import annotations

import contextlib
import errno
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kdlab.errors import InputError
from kdlab.files import file_beside

Values = npt.NDArray[np.generic]
_Words = npt.NDArray[np.uint64]


class Rows:
    """A file of (rows, width) numbers, each row with a checksum that marks it as valid.

    The file holds one 64-bit checksum a row (0: absent), then the rows, each filled up to whole 64-bit words. It is
    created in full and empty at once, so that a full disk is an error here and not a crash at a later write.

    There are no locks: a reader copies a row and its checksum and uses the copy only if the two agree. After a kill, a
    lost page, or two writers with different bits at once, they disagree, and the row is absent: it is written again.

    Raises:
        InputError: the file cannot be made or has another size, or a place is outside it.
    """

    def __init__(self, path: Path, rows: int, width: int, dtype: str) -> None:
        self.path, self.rows, self.width, self.dtype = path, rows, width, np.dtype(dtype)
        size = self.size(rows, width, dtype)
        if not os.path.lexists(path):
            _create(path, size)
        with refused(path):
            if path.is_symlink():
                raise InputError(f"'{path}' is a link, which may lead out of the cache's folder: delete it.")
            actual = path.stat().st_size
            if actual != size:
                raise InputError(
                    f"'{path}' has {actual} bytes, where {rows} rows of {width} {dtype} take {size}: delete the file."
                )
            content = np.asarray(np.memmap(path, np.uint64, "r+"))
        self._sums, self._words = content[:rows], content[rows:].reshape(rows, -1)
        self._weights = _odd(self._words.shape[1])

    @staticmethod
    def size(rows: int, width: int, dtype: str) -> int:
        """Return the size of such a file in bytes."""
        return rows * 8 * (1 + -(-width * np.dtype(dtype).itemsize // 8))

    def count(self) -> int:
        """Return how many rows have a checksum."""
        return int(np.count_nonzero(self._sums))

    def read(self, places: npt.NDArray[np.int64]) -> tuple[Values, npt.NDArray[np.bool_]]:
        """Return the rows at ``places``, (b, width), and whether each is valid, (b,); others hold any numbers."""
        if len(places) and not (places.min() >= 0 and places.max() < self.rows):
            raise InputError(
                f"The batch has sample indices from {places.min()} to {places.max()}, but '{self.path}' has "
                f"{self.rows} rows: every sample's index must be its position in the data set."
            )
        words = self._words.take(places, 0)
        present = self._sums.take(places) == self._checksums(words)
        return words.view(self.dtype)[:, : self.width], present

    def fill(self, places: npt.NDArray[np.int64], fresh: Values, write: bool = True) -> Values:
        """Write those of the rows that are absent, and return what :meth:`read` returns from then on.

        Without ``write``, return what it would return.
        """
        values, present = self.read(places)
        if write:
            self.write(places[~present], fresh[~present])
            values, present = self.read(places)  # not ``fresh`` where a row is named twice
        values[~present] = fresh[~present]  # another process is writing this very row
        return values

    def write(self, places: npt.NDArray[np.int64], values: Values) -> None:
        """Write ``values``, (b, width), at ``places``; of a place that is named twice, the last row counts."""
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


class Form(NamedTuple):
    """The form of numbers (B, ``width``) in rows: rounded to ``dtype``, or the k highest of each as bytes."""

    width: int
    dtype: str
    top_k: int | None = None

    @property
    def row(self) -> tuple[int, str]:
        """Return width and dtype of the rows."""
        if self.top_k is None:
            return self.width, self.dtype
        return (self.top_k + 1) * np.dtype(self.dtype).itemsize + self.top_k * self._integer.itemsize, "uint8"

    @property
    def _integer(self) -> torch.dtype:
        return torch.int16 if self.width <= 32767 else torch.int32

    def encode(self, numbers: Tensor) -> Values:
        """Return numbers as rows; of the highest, with the log-sum-exp of the others after them, then the classes.

        Raises:
            InputError: a number is not finite.
        """
        numbers = numbers.detach().float()
        if self.top_k is not None:
            highest, classes = numbers.topk(self.top_k)
            rest = numbers.scatter(1, classes, -math.inf).logsumexp(1, keepdim=True)
            numbers = torch.cat([highest, rest], 1)
        numbers = numbers.to(getattr(torch, self.dtype))
        if not torch.isfinite(numbers).all():
            large = ", or too large for float16" if self.dtype == "float16" else ""
            raise InputError(f"The teacher gives a number that is not finite{large}: it cannot be cached.")
        if self.top_k is not None:
            numbers = torch.cat([numbers.view(torch.uint8), classes.to(self._integer).view(torch.uint8)], 1)
        rows: Values = numbers.cpu().numpy()
        return rows

    def decode(self, rows: Values, device: torch.device) -> Tensor:
        """Return rows as float32 numbers on a device.

        Raises:
            InputError: rows name classes that do not exist.
        """
        if self.top_k is not None:  # on the host: an index out of range on a GPU ends the process
            named = np.ascontiguousarray(rows[:, -self.top_k * self._integer.itemsize :])
            named = named.view("int16" if self._integer is torch.int16 else "int32")
            if named.size and not (named.min() >= 0 and named.max() < self.width):
                raise InputError("The teacher cache has rows of classes that do not exist: delete its folder.")
        values = torch.from_numpy(rows)
        values = (values.pin_memory() if device.type == "cuda" else values).to(device, non_blocking=True)
        if self.top_k is None:
            return values.float()
        k, dtype = self.top_k, getattr(torch, self.dtype)
        numbers, classes = (
            part.clone(memory_format=torch.contiguous_format)  # to begin where their dtype may
            for part in values.tensor_split([(k + 1) * dtype.itemsize], 1)
        )
        numbers = numbers.view(dtype).float()
        others = numbers[:, k:] - math.log(self.width - k)
        return others.repeat(1, self.width).scatter(1, classes.view(self._integer).long(), numbers[:, :k])

    def error(self, logits: Tensor, temperature: float) -> float:
        """Return the mean KL divergence of logits as they are decoded from the logits themselves, at a temperature."""
        decoded = self.decode(self.encode(logits), torch.device("cpu"))
        log_p, log_q = (torch.log_softmax(x.float().cpu() / temperature, 1) for x in (logits.detach(), decoded))
        return max(0.0, float((log_p.exp() * (log_p - log_q)).sum(1).mean()))  # equal ones may differ by rounding


def _odd(count: int) -> _Words:
    """Return odd numbers with well-mixed bits, the same on every machine (SplitMix64)."""
    mixed = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (mixed ^ (mixed >> np.uint64(31))) | np.uint64(1)


def _create(path: Path, size: int) -> None:
    """Make a file of zeros that appears in full size: of several processes that make it at once, one succeeds."""
    with refused(path), file_beside(path) as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        else:  # macOS: a file that was only lengthened would not yet have its space
            file.write(np.zeros(size, np.uint8).data)
            file.flush()
        with contextlib.suppress(FileExistsError):
            os.link(file.name, path)


@contextlib.contextmanager
def refused(path: Path) -> Iterator[None]:
    """Turn an error of the operating system into an InputError with a hint."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        hint = ": make room, lower views, or use top_k or float16" if full else ": choose another folder"
        raise InputError(f"The teacher cache cannot use '{path}' ({error.strerror}){hint}.") from error
