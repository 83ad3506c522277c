"""Files of a teacher's outputs for every training sample: format, reading and writing."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from kdlab.errors import InputError
from kdlab.files import atomic_write

FORMAT = 1
OUTPUTS = ("logits", "probabilities", "embedding", "hidden", "log_probabilities", "tokens")
"""Tensors with a row for each sample, or for each token."""
FURTHER = ("ends", "labels", "index", "head.weight", "head.bias")
TYPES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
TYPES |= {torch.int64: "I64", torch.int32: "I32"}


class OutputFile(NamedTuple):
    """What a file holds.

    Attributes:
        path: of the file.
        tensors: by name, see :class:`~kdlab.members.Stored`; those of safetensors and npy stay on disk until read.
        about: what kdlab wrote beside them (``format``, ``views``, ``num_classes``, ``data``, ``teacher``); empty for
            files of other programs.
    """

    path: Path
    tensors: dict[str, Tensor]
    about: dict[str, Any]

    @property
    def rows(self) -> int:
        """Return the rows of the outputs."""
        return next(len(self.tensors[name]) for name in OUTPUTS if name in self.tensors)

    @property
    def views(self) -> int:
        """Return how many views of each sample there are."""
        return int(self.about.get("views", 1))

    @property
    def samples(self) -> int:
        """Return the number of samples."""
        return len(self.tensors["ends"]) if "ends" in self.tensors else self.rows // self.views


def read_outputs(path: Path, kind: str = "logits") -> OutputFile:
    """Return what a file holds, checked.

    Args:
        path: a ``.safetensors``, ``.npy`` or ``.parquet`` file.
        kind: what the array of a ``.npy`` file is.

    Raises:
        InputError: there is no such file, it cannot be read, or its tensors do not belong together.
    """
    if not path.is_file():
        raise InputError(f"There is no file {str(path)!r} of stored outputs.")
    readers = {".safetensors": _safetensors, ".npy": _npy, ".parquet": _parquet}
    if path.suffix not in readers:
        raise InputError(f"Stored outputs are in a file {', '.join(readers)}, not {path.name!r}.")
    try:
        tensors, about = readers[path.suffix](path, kind)
    except (OSError, EOFError, ValueError, SafetensorError) as error:
        raise InputError(f"{str(path)!r} cannot be read ({error}).") from error
    file = OutputFile(path, tensors, about)
    _check(file)
    return file


def _safetensors(path: Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    with safe_open(path, "pt") as file:
        names = [name for name in file.keys() if name in (*OUTPUTS, *FURTHER)]  # noqa: SIM118  # no mapping
        about = json.loads((file.metadata() or {}).get("kdlab", "{}"))
        return {name: file.get_tensor(name) for name in names}, about


def _npy(path: Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    return {kind: torch.from_numpy(np.load(path, mmap_mode="c", allow_pickle=False))}, {}


def _parquet(path: Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise InputError("Parquet files need pyarrow: pip install pyarrow.") from error
    table = pyarrow.parquet.read_table(path, columns=None)
    about = json.loads((table.schema.metadata or {}).get(b"kdlab", b"{}"))
    tensors: dict[str, Tensor] = {}
    for name in (*OUTPUTS, "labels", "index"):
        if name in table.column_names:
            column = table[name].combine_chunks()
            if column.null_count:
                raise InputError(f"{str(path)!r}: the column {name!r} has {column.null_count} empty fields.")
            tensors |= _column(path, name, column)
    return tensors, about


def _column(path: Path, name: str, column: Any) -> dict[str, Tensor]:
    """Return a column of numbers or lists as a tensor; of lists of lists, one list a token, also where samples end."""
    shape, ends = [len(column)], {}
    while hasattr(column, "value_lengths"):
        lengths = column.value_lengths().to_numpy(zero_copy_only=False)
        column = column.flatten()
        if hasattr(column, "value_lengths"):  # one list a token
            ends = {"ends": torch.from_numpy(lengths.astype("int64").cumsum())}
            shape = [int(lengths.sum())]
            continue
        if len(lengths) and lengths.min() != lengths.max():
            at = int((lengths != lengths[0]).argmax())
            raise InputError(
                f"{str(path)!r}: lists of {name!r} have length {lengths[0]} in row 0 and {lengths[at]} in row {at}."
            )
        shape.append(int(lengths[0]) if len(lengths) else 0)
    return {name: torch.from_numpy(column.to_numpy(zero_copy_only=False).copy()).reshape(shape), **ends}


def _check(file: OutputFile) -> None:
    """Check names, shapes and order of the tensors."""
    path, tensors = str(file.path), file.tensors
    names = [name for name in OUTPUTS if name in tensors]
    if not names:
        raise InputError(f"{path!r} has none of {', '.join(OUTPUTS)}: name its tensors or columns so.")
    if file.about and file.about.get("format") != FORMAT:
        raise InputError(f"{path!r} has format {file.about.get('format')!r}, and this kdlab reads {FORMAT}.")
    for name in names:
        if tensors[name].dim() != 2:
            raise InputError(f"{path!r}: {name!r} must be (rows, width), not {tuple(tensors[name].shape)}.")
        if len(tensors[name]) != file.rows:
            raise InputError(f"{path!r}: {name!r} has {len(tensors[name])} rows, and {names[0]!r} {file.rows}.")
    for name, other in (("log_probabilities", "tokens"), ("hidden", "head.weight")):
        if (name in tensors) != (other in tensors):
            raise InputError(f"{path!r}: {name!r} and {other!r} belong together, but only one is there.")
        if name in tensors and tensors[name].shape[1] != tensors[other].shape[1]:
            widths = tensors[name].shape[1], tensors[other].shape[1]
            raise InputError(f"{path!r}: {name!r} has width {widths[0]}, and {other!r} {widths[1]}.")
    if "ends" in tensors and int(tensors["ends"][-1]) * file.views != file.rows:
        last = int(tensors["ends"][-1])
        raise InputError(f"{path!r}: the samples end at token {last}, but there are {file.rows} rows.")
    for name in ("labels", "index"):
        if name in tensors and len(tensors[name]) != file.samples:
            raise InputError(f"{path!r}: {name!r} has {len(tensors[name])} rows for {file.samples} samples.")
    if "index" in tensors and not torch.equal(tensors["index"].sort().values, torch.arange(file.samples)):
        raise InputError(f"{path!r}: 'index' must name each of 0 to {file.samples - 1} once.")


@contextmanager
def writer(
    path: Path, shapes: Mapping[str, tuple[Sequence[int], torch.dtype]], about: Mapping[str, Any]
) -> Iterator[dict[str, Tensor]]:
    """Give tensors of a new safetensors file that are filled in place; it replaces ``path`` when the block ends.

    Whatever interrupts the block, ``path`` is what it was before. Nothing but the pages being written is in memory.

    Raises:
        InputError: the disk is full, or cannot be written.
    """
    entries, end = dict[str, Any](), 0
    for name, (shape, dtype) in sorted(shapes.items(), key=lambda item: -item[1][1].itemsize):  # aligned
        size = math.prod(shape) * dtype.itemsize
        entries[name] = {"dtype": TYPES[dtype], "shape": [*shape], "data_offsets": [end, end + size]}
        end += size
    text = json.dumps({"__metadata__": {"kdlab": json.dumps({"format": FORMAT, **about})}, **entries}).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    with atomic_write(path, "w+b") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.flush()
        _reserve(file, start + end)
        memory = np.memmap(file.name, np.uint8, "r+")
        whole = torch.from_numpy(memory)
        yield {
            name: whole[start + entry["data_offsets"][0] : start + entry["data_offsets"][1]]
            .view(shapes[name][1])
            .view([*shapes[name][0]])
            for name, entry in entries.items()
        }
        memory.flush()


def _reserve(file: Any, size: int) -> None:
    """Take the disk space at once, so that a full disk is an error here and not a crash later."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
    else:  # macOS
        os.ftruncate(file.fileno(), size)


def save_outputs(path: str | Path, data: Any = None, **tensors: Tensor) -> None:
    """Write a file of outputs that were computed anywhere, for :class:`~kdlab.members.Stored`.

    Args:
        path: of a ``.safetensors`` file.
        data: the data module that was set up, whose samples in their order they belong to: its fingerprint goes into
            the file, so that other samples or another order are noticed.
        tensors: ``logits``, ``probabilities``, ``embedding``, ... as in :class:`~kdlab.members.Stored`.

    Raises:
        InputError: the tensors do not belong together, or are not as many as the data's samples.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "teacher.safetensors"
    >>> save_outputs(path, logits=torch.zeros(3, 10))
    >>> read_outputs(path).samples
    3
    """
    about = {"format": FORMAT, "data": data.fingerprint()} if data is not None else {"format": FORMAT}
    _check(OutputFile(Path(path), tensors, about))
    shapes = {name: (value.shape, value.dtype) for name, value in tensors.items()}
    with writer(Path(path), shapes, about) as places:
        for name, value in tensors.items():
            places[name].copy_(value)
