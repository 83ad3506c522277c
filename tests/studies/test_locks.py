"""Locks: one process at a time, and none that outlives its process."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from kdlab.errors import InputError
from kdlab.studies.locks import locked

HOLD = """
import sys, time
from pathlib import Path
from kdlab.studies.locks import locked
with locked(Path(sys.argv[1]), "held"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_one_is_told_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "new" / ".lock"
    with locked(path, "the ledger is in use"):
        with (
            pytest.raises(InputError, match=r"^The ledger is in use: wait until it is done, or stop it\.$"),
            locked(path, "the ledger is in use"),
        ):
            raise AssertionError
        with locked(tmp_path / "other", "another file"):
            pass
    with locked(path, "the ledger is in use"):
        pass


def test_an_error_inside_gives_it_back(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), locked(tmp_path / "lock", ""):
        raise ZeroDivisionError
    with locked(tmp_path / "lock", ""):
        pass


def test_one_may_wait_for_it(tmp_path: Path) -> None:
    order: list[str] = []

    def second() -> None:
        with locked(tmp_path / "lock", "", wait=True):
            order.append("second")

    with locked(tmp_path / "lock", ""):
        waiting = threading.Thread(target=second)
        waiting.start()
        time.sleep(0.2)
        order.append("first")
    waiting.join(10)
    assert order == ["first", "second"]


def test_it_dies_with_its_process(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(InputError), locked(path, "held"):
            raise AssertionError
        process.kill()
        process.wait()
        with locked(path, "held"):
            pass
