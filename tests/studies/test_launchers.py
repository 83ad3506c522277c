"""One run at a time, each in a process of its own that ends with the study."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kdlab.studies import launchers as launch
from kdlab.studies.launchers import WATCHED, OneAtATime

# What is called instead of Python: it notes how, waits until the study is gone, or ends at once if "end" is there.
CELL = """\
#!/bin/sh
folder="$3"
echo "$1 $2 $WATCHED $$" > "$folder/called"
echo output; echo error >&2
[ -e "$folder/end" ] && exit 3
cat > /dev/null
echo gone > "$folder/gone"
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    fake = tmp_path / "python"
    fake.write_text(CELL.replace("WATCHED", WATCHED))
    fake.chmod(fake.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setattr(sys, "executable", str(fake))
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def called(folder: Path) -> list[str]:
    """How the run's process was called, once it was."""
    for _ in range(500):
        if (folder / "called").exists() and (text := (folder / "called").read_text()).endswith("\n"):
            return text.split()
        time.sleep(0.01)
    raise AssertionError("it was not called")


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]


def test_a_run_that_ends(folder: Path) -> None:
    (folder / "end").touch()
    launcher = OneAtATime()
    assert launcher.capacity == 1
    assert launcher.ended(0.0) == []
    launcher.start(folder)
    assert launcher.ended(10.0) == [folder]
    assert launcher.ended(0.0) == [], "it is said once"
    assert called(folder)[:3] == ["-m", "kdlab.studies.worker", "1"]
    assert sorted((folder / "log.txt").read_text().split()) == ["error", "output"]


def test_the_log_of_a_run_that_is_started_again_goes_on(folder: Path) -> None:
    (folder / "end").touch()
    launcher = OneAtATime()
    for _ in range(2):
        launcher.start(folder)
        assert launcher.ended(10.0) == [folder]
    assert (folder / "log.txt").read_text().count("output") == 2


def test_waiting_for_a_run_takes_no_longer_than_asked(folder: Path) -> None:
    launcher = OneAtATime()
    launcher.start(folder)
    process = int(called(folder)[3])
    since = time.monotonic()
    assert launcher.ended(0.05) == []
    assert 0.05 <= time.monotonic() - since < 5.0
    launcher.stop()
    assert not alive(process)
    assert launcher.ended(0.0) == []
    launcher.stop()  # nothing is left to end


def test_a_run_may_start_after_one_was_ended(folder: Path) -> None:
    launcher = OneAtATime()
    launcher.start(folder)
    called(folder)
    launcher.stop()
    (folder / "end").touch()
    launcher.start(folder)
    assert launcher.ended(10.0) == [folder]


STUDY = """
import sys, time
from pathlib import Path
from kdlab.studies.launchers import OneAtATime
sys.executable = sys.argv[2]
launcher = OneAtATime()
launcher.start(Path(sys.argv[1]))
time.sleep(60)
"""


def test_a_run_is_told_when_its_study_is_killed(folder: Path) -> None:
    fake = sys.executable
    python = str(Path(sys.prefix) / "bin" / "python")
    study = subprocess.Popen([python, "-c", STUDY, str(folder), fake], cwd=Path(launch.__file__).parents[2])
    process = int(called(folder)[3])
    assert alive(process)
    study.send_signal(signal.SIGKILL)
    study.wait()
    for _ in range(500):  # its standard input ends: the real one leaves at that
        if (folder / "gone").exists():
            break
        time.sleep(0.01)
    assert (folder / "gone").read_text() == "gone\n"
