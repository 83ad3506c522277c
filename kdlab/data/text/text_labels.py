"""Labels of texts: class names, class numbers and values."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from kdlab.data.text.text_files import Rows
from kdlab.data.text.text_tasks import IGNORED
from kdlab.errors import InputError, form_of, nearest


def values_of(rows: Rows) -> Callable[[int], float]:
    """Return what gives the label of a row as a finite number."""

    def value(row: int) -> float:
        label = (rows.label or ())[row]
        try:
            number = float(label)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise InputError(f"{rows.source}, row {row + 1}: the label {label!r} is no finite number.")
        return number

    return value


def words_of(label: Any, where: str) -> Sequence[Any]:
    """Return the labels of a row's words; text is split at spaces."""
    labels = label.split() if isinstance(label, str) else label
    if not isinstance(labels, Sequence):
        raise InputError(f"{where}: the labels are {form_of(label)}, where a list, one for each word, is needed.")
    return labels


def class_names(train: Rows, of_words: bool) -> list[str]:
    """Return the names of the classes: all labels in alphabetical order, or numbers.

    Numbers that begin at 0 are class indices, with those between that no row has; others are in the order of numbers.
    """
    names: set[str] = set()
    for row, label in enumerate(train.label or (), 1):
        labels: Iterable[Any] = words_of(label, f"{train.source}, row {row}") if of_words else [label]
        names |= {str(each) for each in labels if not _is_missing(each)}
    if not names:
        return []
    if not all(name.isdecimal() for name in names):
        return sorted(names)
    numbers = sorted(map(int, names))
    return [str(number) for number in (range(numbers[-1] + 1) if numbers[0] == 0 else numbers)]


def _is_missing(label: Any) -> bool:
    return label is None or str(label) == str(IGNORED)


def _number(label: Any, numbers: dict[str, int], where: str) -> int:
    """Return a label's class; -100 for no label (``None`` or -100)."""
    if _is_missing(label):
        return IGNORED
    name = str(int(label)) if isinstance(label, bool) else str(label)
    if name.isdecimal():
        name = str(int(name)) if str(int(name)) in numbers else name
    if name not in numbers:
        raise InputError(f"{where}: the label {label!r} is none of the classes {nearest(name, numbers)}.")
    return numbers[name]


def class_numbers(rows: Rows, classes: Sequence[str]) -> list[int]:
    """Return the class of each row; -100 in a split whose labels are all -1, as GLUE's test sets have it."""
    if "-1" not in classes and all(str(label) == "-1" for label in rows.label or ()):
        return [IGNORED] * len(rows.label or ())
    numbers = {name: number for number, name in enumerate(classes)}
    return [_number(label, numbers, f"{rows.source}, row {row}") for row, label in enumerate(rows.label or (), 1)]


def word_numbers(rows: Rows, classes: Sequence[str], places: Sequence[int]) -> list[list[int]]:
    """Return the classes of the words of each text, by the row that it is of."""
    numbers = {name: number for number, name in enumerate(classes)}
    of_rows = []
    for row, (text, label) in enumerate(zip(rows.text, rows.label or (), strict=True), 1):
        where = f"{rows.source}, row {row}"
        words, labels = text.split() if isinstance(text, str) else text, words_of(label, where)
        if len(words) != len(labels):
            raise InputError(f"{where}: {len(words)} words, but {len(labels)} labels.")
        of_rows.append([_number(each, numbers, where) for each in labels] or [IGNORED])
    return [of_rows[place] for place in places]
