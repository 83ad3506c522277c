"""The scripts that measure a study and a cache run, small; what they measure is not looked at."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.config_files import ROOT

pytestmark = pytest.mark.nightly


def test_a_study_and_the_loop_over_scripts_both_run(tmp_path: Path) -> None:
    command = [sys.executable, "experiments/speed/study.py", "--quick", f"--json={tmp_path / 'out.json'}"]
    subprocess.run(command, cwd=ROOT, check=True)
    numbers = json.loads((tmp_path / "out.json").read_text())
    assert numbers["ratio"] == pytest.approx(numbers["kdlab"]["wall"] / numbers["hand"]["wall"])
    gated = subprocess.run([*command, "--gate=0"], cwd=ROOT, check=False)
    assert gated.returncode == 1


def test_the_costs_of_a_cache_are_printed(tmp_path: Path) -> None:
    command = [sys.executable, "experiments/speed/cache_scale.py", str(tmp_path), "--quick"]
    printed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert "top 10                                56 bytes, K=1: 0.1 GB" in printed
    assert not any(tmp_path.iterdir())
