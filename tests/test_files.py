"""Atomic writes, and locks that hold one process at a time and end with it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from kdlab.errors import InputError
from kdlab.files import atomic_write, locked


@pytest.mark.parametrize(("mode", "content"), [("wb", b"new\r\n"), ("w", "new\r\n")])
def test_atomic_write_replaces_the_file(mode: str, content: Any, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"
    for text in (content, content[:3]):
        with atomic_write(path, mode) as file:
            file.write(text)
            file.flush()
            assert list(path.parent.iterdir()) != [path]
        assert list(path.parent.iterdir()) == [path]
        assert path.read_bytes() == (text if isinstance(text, bytes) else text.encode())


@pytest.mark.parametrize("by", ["block", "disk"])
def test_atomic_write_that_fails_leaves_the_old_file(by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    if by == "disk":
        monkeypatch.setattr(os, "fsync", full)

    def write() -> None:
        with atomic_write(path, "w") as file:
            file.write("half of it")
            if by == "block":
                raise KeyboardInterrupt

    with pytest.raises((KeyboardInterrupt, InputError)):
        write()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


HOLD = """
import sys, time
from pathlib import Path
from kdlab.files import locked
with locked(Path(sys.argv[1]), "held"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_holder_is_an_input_error(tmp_path: Path) -> None:
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


def test_an_error_inside_releases_the_lock(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), locked(tmp_path / "lock", ""):
        raise ZeroDivisionError
    with locked(tmp_path / "lock", ""):
        pass


def test_wait_waits_for_the_lock(tmp_path: Path) -> None:
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


def test_a_killed_process_releases_its_lock(tmp_path: Path) -> None:
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


def test_files_of_killed_writers_are_removed(tmp_path: Path) -> None:
    """A live writer of the same file, here another process, keeps its own."""
    code = """
import os, sys
from pathlib import Path
from kdlab.files import atomic_write
with atomic_write(Path(sys.argv[1])) as file:
    file.write(b"mine")
    print("open", flush=True)
    sys.stdin.readline()
"""
    path = tmp_path / "last.ckpt"
    other = tmp_path / ".other.ckpt.1234.tmp"
    for left in (".last.ckpt.4711.tmp", ".last.ckpt.0123456789ab.tmp"):
        (tmp_path / left).write_bytes(b"half")
    other.write_bytes(b"of another file")
    live = subprocess.Popen([sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert live.stdout is not None
    live.stdout.readline()
    with atomic_write(path) as file:
        file.write(b"first")
    assert len(list(tmp_path.glob(".last.ckpt.*"))) == 1
    live.communicate(b"\n", timeout=60)
    assert path.read_bytes() == b"mine"
    killed = subprocess.Popen([sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert killed.stdout is not None
    killed.stdout.readline()
    killed.kill()
    killed.communicate()
    assert len(list(tmp_path.glob(".last.ckpt.*"))) == 1
    with atomic_write(path) as file:
        file.write(b"second")
    assert sorted(tmp_path.iterdir()) == [other, path]
