"""Runs on this machine, each in a process of its own that ends with the study."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch

from kdlab.files import read_json, write_json
from kdlab.studies import launchers as launch
from kdlab.studies.launchers import Local, become, processors, threads_of

pytestmark = pytest.mark.full
LONG = 600
"""Seconds within which processes start and end on a busy machine."""


def noted(pipe: Connection, environment: Mapping[str, str], folder: str, threads: int | None) -> None:
    """Take the place of a training: note what it would see, and go on for long, or end if ``end`` is there."""
    become(pipe, environment, Path(folder) / "log.txt", threads)
    print("output", flush=True)
    print("error", file=sys.stderr, flush=True)
    about = {"process": os.getpid(), "test": os.environ.get("KDLAB_TEST"), "threads": torch.get_num_threads()}
    write_json(Path(folder) / "called", about)
    if (Path(folder) / "end").exists():
        raise SystemExit(3)
    time.sleep(6000)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(launch, "train_in", noted)
    return new(tmp_path / "run")


@pytest.fixture
def launcher() -> Iterator[Local]:
    launcher = Local(2)
    yield launcher
    launcher.stop()


def new(folder: Path) -> Path:
    folder.mkdir()
    return folder


def called(folder: Path) -> dict[str, Any]:
    """What the run's process saw, once it was there."""
    for _ in range(LONG * 100):
        if (about := read_json(folder / "called")) is not None:
            return about
        time.sleep(0.01)
    raise AssertionError("it was not called")


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]


def test_a_run_that_ends_is_reported_once(folder: Path, launcher: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "end").touch()
    assert launcher.ended(0.0) == []
    for number in ("one", "two"):  # the second has the environment of its own start
        monkeypatch.setenv("KDLAB_TEST", number)
        launcher.start(folder)
        assert launcher.ended(LONG) == [folder]
        assert launcher.ended(0.0) == []
        assert called(folder)["test"] == number
    assert sorted((folder / "log.txt").read_text().split()) == ["error", "error", "output", "output"]
    assert Local().capacity == 1


def test_runs_at_once_share_the_processors(folder: Path, launcher: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    other = new(folder.with_name("other"))
    for each in (folder, other):
        launcher.start(each)
    processes = {called(each)["process"] for each in (folder, other)}
    assert len(processes) == 2
    assert all(map(alive, processes))
    assert [called(each)["threads"] for each in (folder, other)] == [max(1, processors() // 2)] * 2
    os.kill(called(other)["process"], signal.SIGKILL)
    assert launcher.ended(LONG) == [other], "and nothing of the other"
    assert alive(called(folder)["process"])


def test_threads_are_as_asked_for_or_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(launch, "processors", lambda: 8)
    assert [threads_of(pack) for pack in (1, 2, 3, 8, 16)] == [None, 4, 2, 1, 1]
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert threads_of(2) is None


def test_waiting_for_a_run_takes_no_longer_than_asked(folder: Path, launcher: Local) -> None:
    launcher.start(folder)
    process = called(folder)["process"]
    since = time.monotonic()
    assert launcher.ended(0.05) == []
    assert 0.05 <= time.monotonic() - since < 30.0
    launcher.stop()
    assert not alive(process)
    assert launcher.ended(0.0) == []
    launcher.stop()  # nothing is left to end
    (folder / "end").touch()
    launcher.start(folder)
    assert launcher.ended(LONG) == [folder], "a run may start after one was ended"


STUDY = """
import sys, time
from pathlib import Path
from kdlab.studies import launchers
from tests.studies.test_launchers import noted
launchers.train_in = noted
launcher = launchers.Local(2)
for folder in sys.argv[1:]:
    launcher.start(Path(folder))
time.sleep(6000)
"""


def test_runs_end_when_their_study_is_killed(folder: Path) -> None:
    folders = [folder, new(folder.with_name("other"))]
    script = folder.with_name("script.py")
    script.write_text(STUDY)  # without a guard: it is not run again in the runs
    path = os.pathsep.join([str(Path(launch.__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    study = subprocess.Popen([sys.executable, script, *folders], env={**os.environ, "PYTHONPATH": path})
    processes = [called(each)["process"] for each in folders]
    assert all(map(alive, processes))
    study.send_signal(signal.SIGKILL)
    study.wait()
    for _ in range(LONG * 100):  # the end of their pipes is the end of the study
        if not any(map(alive, processes)):
            break
        time.sleep(0.01)
    assert not any(map(alive, processes))


def test_a_run_that_cannot_be_read_fails_by_itself(tmp_path: Path, launcher: Local) -> None:
    """The real worker, which finds no recipe: what it reports goes where the scheduler reads it."""
    launcher.start(new(tmp_path / "empty"))
    assert launcher.ended(LONG) == [tmp_path / "empty"]
    status = json.loads((tmp_path / "empty/status.json").read_text())
    assert status["state"] == "failed"
    assert "recipe.yaml" in status["error"]
    assert "Traceback" in (tmp_path / "empty/log.txt").read_text()
