"""Rows of TSV, CSV, JSON Lines and Parquet files and of ``datasets`` data sets, as columns."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from kdlab.errors import InputError, form_of, nearest

SUFFIXES = (".tsv", ".csv", ".jsonl", ".parquet")
SPLITS = {"train": ("train",), "val": ("val", "dev", "validation", "valid"), "test": ("test",)}

Column = int | str


class Rows(NamedTuple):
    """The columns of one split; a column that is not asked for is ``None``."""

    text: list[Any]
    pair: list[Any] | None
    label: list[Any] | None
    source: str


def sources(root: str | Mapping[str, Any]) -> dict[str, Any]:
    """Return the source of each split: a file, or rows in memory.

    Args:
        root: a folder with ``train.tsv`` and others (see :data:`SPLITS`, :data:`SUFFIXES`), or the sources by split.

    Raises:
        InputError: a split is missing, has several files or an unknown name.
    """
    if not isinstance(root, str):
        if unknown := root.keys() - SPLITS.keys():
            raise InputError(f"data.root has the splits {sorted(unknown)}; they are called {', '.join(SPLITS)}.")
        chosen = dict(root)
    else:
        folder, chosen = Path(root).expanduser(), {}
        if not folder.is_dir():
            raise InputError(f"There is no folder {root!r} with texts.", key="data.root")
        for split, names in SPLITS.items():
            paths = [path for name in names for end in SUFFIXES if (path := folder / f"{name}{end}").is_file()]
            if len(paths) > 1:
                listed = ", ".join(path.name for path in paths)
                raise InputError(f"{root!r} has several files for {split}: {listed}. Name one for each split.")
            if paths:
                chosen[split] = str(paths[0])
    if "train" not in chosen:
        raise InputError(f"{root!r} has no train{'|'.join(SUFFIXES)}.", key="data.root")
    return chosen


def hub_sources(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the splits of a data set that the package ``datasets`` loads, by kdlab's names.

    Raises:
        InputError: the package is not installed.
    """
    try:
        import datasets  # an optional dependency
    except ImportError as error:
        raise InputError(f"Data set {name!r} needs datasets: install it with `pip install datasets`.") from error
    loaded = datasets.load_dataset(name, **options)
    return {split: loaded[other] for split, names in SPLITS.items() for other in names if other in loaded}


def read_rows(source: Any, text: Column, pair: Column | None, label: Column | None, header: bool | None) -> Rows:
    """Read the columns of one split.

    Args:
        source: a file, or a sequence of mappings such as a ``datasets.Dataset``.
        text: name or number of the column of texts.
        pair: that of the second texts, if texts are pairs.
        label: that of the labels; ``None`` for none.
        header: whether the first line of a TSV or CSV file has names; ``None``: if a column is given by name.

    Raises:
        InputError: there is no such file or column, or a line is damaged.
    """
    wanted = {"text": text, "pair": pair, "label": label}
    name = str(source) if isinstance(source, (str, Path)) else f"a {type(source).__name__}"
    if not isinstance(source, (str, Path)):
        columns = _of_mappings(source, name, wanted)
    else:
        path = Path(source).expanduser()
        if not path.is_file():
            raise InputError(f"There is no file {name!r}.", key="data.root")
        if path.suffix not in SUFFIXES:
            raise InputError(f"{name!r} is none of {', '.join(SUFFIXES)}.", key="data.root")
        try:
            columns = _of_file(path, wanted, header)
        except UnicodeDecodeError as error:
            raise InputError(f"{name!r} is not UTF-8: {error.reason} at byte {error.start}.") from error
    if not columns["text"]:
        raise InputError(f"{name!r} has no rows.")
    return Rows(columns["text"], columns.get("pair"), columns.get("label"), name)


def _of_file(path: Path, wanted: Mapping[str, Column | None], header: bool | None) -> dict[str, list[Any]]:
    if path.suffix in (".tsv", ".csv"):
        return _of_table(path, wanted, header)
    if path.suffix == ".jsonl":
        return _of_mappings(_json_lines(path), str(path), wanted)
    try:
        from pyarrow import parquet  # an optional dependency
    except ImportError as error:
        raise InputError(f"{str(path)!r} needs pyarrow: install it with `pip install pyarrow`.") from error
    names = parquet.read_schema(path).names
    for column in wanted.values():
        if column is not None and column not in names:
            raise _no_column(column, str(path), names)
    table = parquet.read_table(path, columns=[column for column in wanted.values() if column is not None])
    return {name: table[column].to_pylist() for name, column in wanted.items() if column is not None}


def _json_lines(path: Path) -> Iterable[Any]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    yield json.loads(line)
                except ValueError as error:
                    raise InputError(f"{path}, line {number}: no JSON ({error}).") from error


def _of_mappings(rows: Iterable[Any], name: str, wanted: Mapping[str, Column | None]) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {key: [] for key, column in wanted.items() if column is not None}
    for number, row in enumerate(rows, 1):
        if not isinstance(row, Mapping):
            raise InputError(f"{name}, row {number}: {form_of(row)}, where a mapping of columns is needed.")
        for key, values in columns.items():
            if wanted[key] not in row:
                raise _no_column(wanted[key], f"{name}, row {number},", list(row))
            values.append(row[wanted[key]])
    return columns


def _of_table(path: Path, wanted: Mapping[str, Column | None], header: bool | None) -> dict[str, list[Any]]:
    """Read a TSV file, in which quotes are plain characters, or a CSV file."""
    csv.field_size_limit(1 << 30)
    with path.open(encoding="utf-8-sig", newline="") as file:
        style: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if path.suffix == ".tsv" else {}
        reader = csv.reader(file, **style)
        named = any(isinstance(column, str) for column in wanted.values())
        names: Sequence[str] = next(reader, []) if named or header else []
        places: dict[str, int] = {}
        for key, column in wanted.items():
            if isinstance(column, str) and column not in names:
                raise _no_column(column, str(path), names)
            if column is not None:
                places[key] = names.index(column) if isinstance(column, str) else column
        columns: dict[str, list[Any]] = {key: [] for key in places}
        for row in reader:
            if not row:
                continue
            for key, place in places.items():
                if place >= len(row):
                    raise InputError(f"{path}, line {reader.line_num}: {len(row)} columns, so there is no {place}.")
                columns[key].append(row[place])
    return columns


def _no_column(column: Any, where: str, names: Sequence[Any]) -> InputError:
    return InputError(
        f"{where} has no column {column!r}; the nearest names are {nearest(str(column), map(str, names))}."
    )
