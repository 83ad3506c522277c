"""The wheel works where nothing of the clone is: recipes, studies, types, the demo."""

from __future__ import annotations

import os
import site
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import kdlab

pytestmark = pytest.mark.nightly

ROOT = Path(__file__).parent.parent


def run(*command: str | Path, cwd: Path) -> str:
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}  # the clone may be on it
    words = [str(part) for part in command]
    done = subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_wheel_runs_demo_and_recipe_in_an_empty_folder(tmp_path: Path) -> None:
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, ROOT, cwd=tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name == f"kdlab-{kdlab.__version__}-py3-none-any.whl"
    names = zipfile.ZipFile(wheel).namelist()
    shipped = [*ROOT.glob("configs/**/*.yaml"), *ROOT.glob("experiments/*/study.yaml"), ROOT / "kdlab/py.typed"]
    for path in shipped:
        inside = path.relative_to(ROOT).as_posix()
        assert (inside if inside.startswith("kdlab/") else f"kdlab/{inside}") in names

    run(sys.executable, "-m", "venv", tmp_path / "venv", cwd=tmp_path)
    python = tmp_path / "venv/bin/python"
    (packages,) = (tmp_path / "venv/lib").glob("python*/site-packages")
    # The libraries of this environment, so that nothing is fetched, but not the clone: paths alone, no .pth in them.
    (packages / "libraries.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel, cwd=tmp_path)

    empty = tmp_path / "empty"
    empty.mkdir()
    where = run(python, "-c", "import kdlab; print(kdlab.__file__)", cwd=empty).strip()
    assert Path(where).is_relative_to(packages)
    command = tmp_path / "venv/bin/kdlab"
    assert "student distilled" in run(command, "demo", "--seeds=1", "--epochs=2", cwd=empty)
    quick = ["--trainer.max_epochs=1", "--trainer.enable_progress_bar=false"]
    fit = run(command, "fit", "-c", "kd_digits", *quick, cwd=empty)
    assert fit.splitlines()[0] == "Run folder: runs/version_0"
    assert "kd_digits" in run(command, "recipes", cwd=empty)
    plan = run(command, "reproduce", "smoke", "--dry-run", cwd=empty)
    assert "Ledger: runs/smoke/ledger.csv" in " ".join(plan.split())  # lines break anywhere
