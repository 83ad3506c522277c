"""Images without classes: folders, zip files, lists of files, Parquet files and shards of litdata."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdlab.data import pixels
from kdlab.data.image_tree import SUFFIXES, Tree
from kdlab.errors import InputError

NO_LABEL = -100
"""The label of a sample without one: the index that PyTorch's losses ignore."""


class Unlabeled(Tree):
    """All images below a directory or in a zip file, in the order of their names.

    Args:
        path: the directory or zip file.

    Raises:
        InputError: as :class:`Tree`, or there is no image.
    """

    def __init__(self, path: Path) -> None:
        self.classes = []
        images = self._list(path)
        if not images:
            raise InputError(f"{path} has no images ({', '.join(sorted(SUFFIXES))}).")
        self._use([(NO_LABEL, name) for name in sorted(images)])

    def _use(self, by_class: Sequence[tuple[int, str]]) -> None:
        self.labels = torch.full((len(by_class),), NO_LABEL)
        self.names = [name for _, name in by_class]


class ListedFiles(Unlabeled):
    """The image files that a text file names, one a line, in its order; relative ones are below its folder.

    Raises:
        InputError: the list is empty or names a file twice.
    """

    def __init__(self, path: Path) -> None:
        names = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        twice = sorted({name for name in names if names.count(name) > 1}) if len({*names}) < len(names) else []
        if twice or not names:
            raise InputError(f"The list {str(path)!r} {f'names {twice[0]!r} twice' if twice else 'is empty'}.")
        self.classes, self.path, self.zipped, self._handle, self.prefix = [], path.parent, False, None, ""
        self._use([(NO_LABEL, name) for name in names])


class Rows(Unlabeled):
    """Encoded images in rows: of a Parquet file, or of a folder that litdata's ``optimize`` wrote.

    Args:
        path: the file, or the folder with ``index.json``.
        column: the column, or the key of a litdata sample: bytes, or a mapping with ``bytes``, as of Hugging Face's
            datasets.

    Raises:
        InputError: the library is missing, the file cannot be read, or has no such column.
    """

    def __init__(self, path: Path, column: str = "image") -> None:
        self.classes, self.path, self.column = [], path, column
        self.zipped, self._handle, self.prefix = False, None, ""
        self._use([(NO_LABEL, str(row)) for row in range(self._count())])

    def stamps(self, positions: Sequence[int]) -> list[tuple[str, int, int]]:
        """Return the rows with size and modification time of the file that says how many there are."""
        stat = (self.path / "index.json" if self.path.is_dir() else self.path).stat()
        return [(self.names[position], stat.st_size, stat.st_mtime_ns) for position in positions]

    def _count(self) -> int:
        raise NotImplementedError(f"{type(self).__name__} must define _count().")

    def _row(self, row: int) -> Any:
        raise NotImplementedError(f"{type(self).__name__} must define _row().")

    def _read(self, name: str) -> bytes:
        try:
            value = self._row(int(name))
        except Exception as error:  # of pyarrow and litdata
            raise pixels.DamagedError(f"cannot be read: {error}.") from error
        value = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(value, bytes):
            raise pixels.DamagedError(f"is no encoded image in {self.column!r}, but a {type(value).__name__}.")
        return value


class ParquetRows(Rows):
    """Images in a column of a Parquet file; one group of rows is in memory at a time."""

    def _file(self) -> Any:
        try:
            from pyarrow import parquet
        except ImportError as error:
            raise InputError("Images in Parquet need pyarrow: pip install 'kdlab[images]'.") from error
        return parquet.ParquetFile(self.path)

    def _count(self) -> int:
        try:
            file = self._file()
        except (OSError, ValueError) as error:
            raise InputError(f"{str(self.path)!r} is not a readable Parquet file ({error}).") from error
        if self.column not in file.schema_arrow.names:
            raise InputError(
                f"{str(self.path)!r} has no column {self.column!r}, but {file.schema_arrow.names}: set column."
            )
        sizes = [file.metadata.row_group(number).num_rows for number in range(file.metadata.num_row_groups)]
        self._ends = torch.tensor(sizes).cumsum(0)
        self._group: tuple[int, Any] | None = None
        return int(sum(sizes))

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_group": None}

    def _row(self, row: int) -> Any:
        group = int(torch.searchsorted(self._ends, row, right=True))
        if self._group is None or self._group[0] != group:
            self._group = group, self._file().read_row_group(group, [self.column]).column(0)
        start = int(self._ends[group - 1]) if group else 0
        return self._group[1][row - start].as_py()


class LitdataRows(Rows):
    """Samples of a folder that litdata's ``optimize`` wrote, read by their index."""

    _samples: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_samples": None}

    def _open(self) -> Any:
        if self._samples is None:
            try:
                from litdata import StreamingDataset
            except ImportError as error:
                raise InputError("Shards of litdata need litdata: pip install 'kdlab[images]'.") from error
            self._samples = StreamingDataset(str(self.path))
        return self._samples

    def _count(self) -> int:
        try:
            count = len(self._open())
            first = self._open()[0]
        except InputError:
            raise
        except Exception as error:
            raise InputError(f"{str(self.path)!r} is no readable folder of litdata ({error}).") from error
        if isinstance(first, dict) and self.column not in first:
            raise InputError(f"The samples of {str(self.path)!r} have no {self.column!r}, but {[*first]}: set column.")
        return count

    def _row(self, row: int) -> Any:
        sample = self._open()[row]
        return sample[self.column] if isinstance(sample, dict) else sample


class Joined(Unlabeled):
    """Several sources, one after the other."""

    def __init__(self, parts: Sequence[Tree]) -> None:
        self.parts = list(parts)
        self.classes, self.zipped, self._handle, self.prefix = [], False, None, ""
        self.path = Path(", ".join(str(part.path) for part in parts))
        self._places = [(number, row) for number, part in enumerate(parts) for row in range(len(part))]
        self._name()

    def _name(self) -> None:
        self._use([(NO_LABEL, f"{self.parts[part].path}/{self.parts[part].names[row]}") for part, row in self._places])

    def omit(self, positions: Any) -> None:
        """Leave out the images at ``positions``."""
        self._places = [place for number, place in enumerate(self._places) if number not in {*positions}]
        self._name()

    def image(self, position: int) -> Tensor:
        """Return the decoded image at a position, (3, H, W) uint8."""
        part, row = self._places[position]
        return self.parts[part].image(row)

    def stamps(self, positions: Sequence[int]) -> list[tuple[str, int, int]]:
        """Return name, size and time of images."""
        places = [self._places[position] for position in positions]
        return [stamp for part, row in places for stamp in self.parts[part].stamps([row])]


def source_of(path: Path, column: str = "image") -> Tree:
    """Return the images at a path: a folder, a zip file, a Parquet file, a ``.txt`` of files, a folder of litdata.

    A folder with zip or Parquet files and no image is all of them.

    Raises:
        InputError: there is nothing there, or it is none of these.
    """
    path = path.expanduser()
    if path.suffix == ".parquet" and path.is_file():
        return ParquetRows(path, column)
    if path.suffix == ".txt" and path.is_file():
        return ListedFiles(path)
    if path.is_file():
        if path.suffix.lower() != ".zip":
            raise InputError(f"{str(path)!r} is no folder, .zip, .parquet or .txt of images.", key="data.root")
        return Unlabeled(path)
    if not path.is_dir():
        raise InputError(f"There is no folder or file of images {str(path)!r}.", key="data.root")
    if (path / "index.json").is_file():
        return LitdataRows(path, column)
    archives = sorted(file for file in path.iterdir() if file.suffix.lower() in (".zip", ".parquet"))
    if archives and not any(file.suffix.lower() in SUFFIXES for file in path.iterdir()):
        return joined([str(file) for file in archives], column)
    return Unlabeled(path)


def joined(paths: Sequence[str], column: str = "image") -> Tree:
    """Return the images of several paths, each as :func:`source_of`, as one source."""
    parts = [source_of(Path(path), column) for path in paths]
    return parts[0] if len(parts) == 1 else Joined(parts)
