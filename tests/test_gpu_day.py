"""The steps for a day with a GPU run on the CPU, small."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.config_files import ROOT

RUN = [sys.executable, "experiments/gpu_day/run.py"]


@pytest.mark.nightly
def test_dry_run_does_every_step_once(tmp_path: Path) -> None:
    command = [*RUN, "--dry", f"--out={tmp_path}"]
    first = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    logs = {path.stem: path.read_text()[-2000:] for path in tmp_path.glob("*.log")}
    assert first.returncode == 0, logs
    ended = json.loads((tmp_path / "steps.json").read_text())
    assert {name: step["status"] for name, step in ended.items()} == {"tests": 0, "speed": 0, "table": 0}
    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout == ""


@pytest.mark.full
def test_a_failed_step_is_told_and_tried_again(tmp_path: Path) -> None:
    (tmp_path / "steps.json").write_text(json.dumps({"table": {"status": 1}}))
    command = [*RUN, "--dry", f"--out={tmp_path}", "--only", "table", "--minutes=0"]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode == 1
