"""What a number was measured with."""

from __future__ import annotations

import platform
import re
import subprocess
from pathlib import Path

import pytest
import torch

import kdlab
from kdlab.studies import environment as machine
from kdlab.studies.ledger import FIELDS


def test_every_version_has_a_column_in_the_ledger() -> None:
    said = machine.versions(torch.device("cpu"))
    assert set(said) <= set(FIELDS)
    assert (said["kdlab"], said["torch"]) == (kdlab.__version__, torch.__version__)
    assert said["python"] == platform.python_version()
    assert said["device"].rpartition(", ")[2].startswith(f"{torch.get_num_threads()} thread")


def test_a_device_has_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {device.index}")
    assert machine.device_name(torch.device("cuda", 1)) == "GPU 1"
    assert machine.device_name(torch.device("mps")) == "mps"


def test_several_processes_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {device.index}")
    assert machine.versions(torch.device("cuda", 0), 4)["device"] == "4 x GPU 0"


def test_the_commit_is_that_of_kdlab_wherever_it_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Path] = []

    def said(command: list[str], cwd: Path, **_: object) -> subprocess.CompletedProcess[str]:
        asked.append(cwd)
        return subprocess.CompletedProcess(command, 0, "abcdef0123-dirty\n")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(kdlab, "__file__", str(tmp_path / "kdlab" / "__init__.py"))
    monkeypatch.setattr(subprocess, "run", said)
    machine.commit.cache_clear()
    assert machine.commit() == "", "no checkout"
    (tmp_path / ".git").mkdir()
    machine.commit.cache_clear()
    assert re.fullmatch(r"[0-9a-f]+(-dirty)?", machine.commit())
    assert asked == [tmp_path]
    machine.commit.cache_clear()
