"""The ledger loses no row, counts the last row of a run, keeps every bit of a float and reads older columns."""

from __future__ import annotations

import csv
import os
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from kdlab.errors import InputError
from kdlab.studies.ledger import FAILED, FIELDS, FINISHED, Ledger

FLOATS = [0.1 + 0.2, 1 / 3, 0.7, 5e-324, 1.7976931348623157e308, -0.0, 2**-1074 * 3, 1e22, 0.6999999999999999]


def row(run: str, accuracy: Any = 0.5, status: str = FINISHED, **more: Any) -> dict[str, Any]:
    return {"run": run, "config": "c", "data": "d", "status": status, "accuracy": accuracy, **more}


def written(path: Path, *runs: str) -> Ledger:
    ledger = Ledger(path)
    for each in runs:
        ledger.append(row(each))
    return ledger


def test_missing_ledger_is_empty_and_created_on_append(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "deep" / "ledger.csv")
    assert (ledger.rows, ledger.last("a"), ledger.finished("a")) == ([], None, False)
    assert not ledger.path.exists()
    ledger.append(row("a", kind="student", nonsense="dropped"))
    assert ledger.path.read_bytes().splitlines()[0].decode() == ",".join(FIELDS)
    with ledger.path.open(newline="") as file:
        (read,) = csv.DictReader(file)
    assert read == ledger.rows[0] == Ledger(ledger.path).rows[0]
    assert {name: value for name, value in read.items() if value} == {
        "run": "a",
        "config": "c",
        "data": "d",
        "kind": "student",
        "status": "finished",
        "accuracy": "0.5",
    }


def test_floats_are_kept_to_the_bit(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.csv")
    for number, value in enumerate(FLOATS):
        ledger.append(row(str(number), value, ece=value, seconds=None))
    for found in (ledger, Ledger(ledger.path)):
        for number, value in enumerate(FLOATS):
            kept = found.last(str(number))
            assert kept is not None
            for name in ("accuracy", "ece"):
                assert struct.pack("d", float(kept[name])) == struct.pack("d", value)
            assert kept["seconds"] == ""


def test_any_text_comes_back(tmp_path: Path) -> None:
    texts = ['a, "b"', "resnet32x4 → resnet8x4", "'x';\ty", 'ends in a quote"', " blank ", "#1"]
    ledger = Ledger(tmp_path / "ledger.csv")
    for number, text in enumerate(texts):
        ledger.append(row(str(number), pair=text, error=text))
    assert [(each["pair"], each["error"]) for each in Ledger(ledger.path).rows] == [(text, text) for text in texts]


def test_a_later_row_of_a_run_counts(tmp_path: Path) -> None:
    ledger = written(tmp_path / "ledger.csv")
    ledger.append(row("a", None, FAILED, error="no memory"))
    ledger.append(row("b", 0.25))
    assert not ledger.finished("a")
    ledger.append(row("a", 0.75))
    ledger.append(row("b", None, FAILED))
    for found in (ledger, Ledger(ledger.path)):
        assert [each["run"] for each in found.rows] == ["a", "b", "a", "b"]
        assert (found.finished("a"), found.finished("b"), found.finished("c")) == (True, False, False)
        last = found.last("a")
        assert last is not None
        assert last["accuracy"] == "0.75"


TORN = ["x", "x" * 999, "b,c,d,student,big → tiny,KD,0,finished,,0.7", 'b,c,d,,"a pair, with']


@pytest.mark.parametrize("torn", TORN)
def test_a_line_that_was_torn_is_no_row_and_goes_with_the_next(torn: str, tmp_path: Path) -> None:
    path = tmp_path / "ledger.csv"
    written(path, "a")
    whole = path.read_bytes()
    path.write_bytes(whole + torn.encode())
    found = Ledger(path)
    assert [each["run"] for each in found.rows] == ["a"]
    assert path.read_bytes() == whole + torn.encode(), "reading changes nothing"
    found.append(row("z"))
    assert path.read_bytes().startswith(whole)
    assert [each["run"] for each in Ledger(path).rows] == ["a", "z"]
    assert path.read_bytes().endswith(b"\n")
    assert torn.encode() not in path.read_bytes().partition(b"\n")[2]


def test_a_letter_cut_in_two_is_no_row_either(tmp_path: Path) -> None:
    path = tmp_path / "ledger.csv"
    written(path, "a")
    path.write_bytes(path.read_bytes() + "big →".encode()[:-1])
    found = Ledger(path)
    found.append(row("z"))
    assert [each["run"] for each in Ledger(path).rows] == ["a", "z"]


@pytest.mark.parametrize("size", [0, 5])
def test_a_ledger_whose_head_was_torn_begins_anew(size: int, tmp_path: Path) -> None:
    path = tmp_path / "ledger.csv"
    path.write_text(",".join(FIELDS)[:size])
    found = Ledger(path)
    assert found.rows == []
    found.append(row("a"))
    assert [each["run"] for each in Ledger(path).rows] == ["a"]


def test_another_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("pair,accuracy\na,0.5\n")
    with pytest.raises(InputError, match=r"table\.csv' is no ledger of a study: it has no column 'config'"):
        Ledger(path)


OLDER = [FIELDS[:-1], FIELDS[:-5], ("accuracy", "status", "config", "run"), (FIELDS[1], FIELDS[0], *FIELDS[2:])]


@pytest.mark.parametrize("fields", OLDER)
def test_older_columns_load_empty_and_are_rewritten(fields: tuple[str, ...], tmp_path: Path) -> None:
    path = tmp_path / "ledger.csv"
    old = {**dict.fromkeys(fields, "x"), "run": "old, b", "accuracy": repr(0.1 + 0.2)}
    text = ",".join(fields) + "\n" + ",".join(f'"{old[name]}"' for name in fields) + "\n"
    path.write_text(text + "torn")
    ledger = Ledger(path)
    assert path.read_text() == text + "torn", "reading changes nothing"
    assert ledger.rows == [{name: old.get(name, "") for name in FIELDS}]
    ledger.append(row("new"))
    assert path.read_text().splitlines()[0] == ",".join(FIELDS)
    assert Ledger(path).rows == ledger.rows
    assert [each["run"] for each in ledger.rows] == ["old, b", "new"]


def test_a_crash_while_columns_are_added_leaves_the_old_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ledger.csv"
    path.write_text(text := "run,config,status,accuracy\na,c,finished,0.5\n")

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        Ledger(path).append(row("b"))
    assert path.read_text() == text


UNKNOWN = r"ledger\.csv' was written by another version of kdlab, with other columns, such as 'more'"


def test_unknown_columns_are_refused_before_anything_is_trained(tmp_path: Path) -> None:
    path = tmp_path / "ledger.csv"
    path.write_text(",".join((*FIELDS, "more")) + "\n")
    with pytest.raises(InputError, match=UNKNOWN):
        Ledger(path)


def test_unknown_columns_are_refused_before_a_row_is_added(tmp_path: Path) -> None:
    path = tmp_path / "ledger.csv"
    ledger = Ledger(path)
    path.write_text(text := ",".join((*FIELDS, "more")) + "\n")
    with pytest.raises(InputError, match=UNKNOWN):
        ledger.append(row("a"))
    assert path.read_text() == text
    assert ledger.rows == []


def test_two_ledgers_of_one_file_keep_each_others_rows(tmp_path: Path) -> None:
    path = tmp_path / "ledger.csv"
    one, other = Ledger(path), Ledger(path)
    for number in range(3):
        one.append(row(f"one {number}"))
        other.append(row(f"other {number}"))
    assert {each["run"] for each in Ledger(path).rows} == {
        f"{name} {number}" for name in ("one", "other") for number in range(3)
    }


APPEND = """
import sys, time
from pathlib import Path
from kdlab.studies.ledger import Ledger
folder, name = Path(sys.argv[1]), sys.argv[2]
ledger = Ledger(folder / "ledger.csv")
(folder / name).touch()
while not (folder / "go").exists():
    time.sleep(0.001)
for number in range(80):
    ledger.append({"run": f"{name} {number}", "config": "c", "status": "finished", "accuracy": 0.5, "error": "x" * 200})
"""


def test_two_processes_that_append_at_once_lose_nothing(tmp_path: Path) -> None:
    names = ["one", "two"]
    started = [subprocess.Popen([sys.executable, "-c", APPEND, str(tmp_path), name]) for name in names]
    while not all((tmp_path / name).exists() for name in names):
        assert all(process.poll() is None for process in started)
        time.sleep(0.01)
    (tmp_path / "go").touch()
    assert [process.wait(60) for process in started] == [0, 0]
    found = Ledger(tmp_path / "ledger.csv").rows
    for name in names:
        assert [each["run"] for each in found if each["run"].startswith(name)] == [f"{name} {n}" for n in range(80)]
    assert all(each["error"] == "x" * 200 and len(each) == len(FIELDS) for each in found)
