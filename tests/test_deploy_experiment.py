"""The script of the deployment experiment: which files it makes of a ledger, and its table of their measurements."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from kdlab.studies.ledger import FINISHED, Ledger

FOLDER = Path(__file__).parent.parent / "experiments" / "deploy_cifar100"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("deploy_cifar100", FOLDER / "deploy.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def row(method: str, seed: int, precision: str, accuracy: float, times: tuple[float, float]) -> dict[str, str]:
    values = {"accuracy": accuracy, "agreement": 0.9, "retention": accuracy / 0.6, "bytes": 1_234_567}
    values |= {"p50_ms_1": times[0], "p50_ms_32": times[1]}
    texts = {name: str(value) for name, value in values.items()}
    return {"method": method, "seed": str(seed), "precision": precision, "runtime": "onnxruntime 1", **texts}


def test_a_ledger_gives_the_files_of_its_networks(script: ModuleType, tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.csv")
    for method in ("", "alone", "KD, two epochs", "KD", "KD, quantization-aware", "failed"):
        status = FINISHED if method != "failed" else "failed"
        ledger.append({"run": f"id{len(method)}", "method": method, "seed": 3, "status": status})
        (tmp_path / f"runs/{method or 'teacher'}-id{len(method)}").mkdir(parents=True)
    files = script.files_of(Ledger(tmp_path / "ledger.csv"), tmp_path / "runs", "onnx")
    assert [(file.method, file.path.name) for file in files] == [
        ("teacher", "student.onnx"),
        ("teacher", "student.int8.onnx"),
        ("alone", "student.onnx"),
        ("alone", "student.int8.onnx"),
        ("KD", "student.onnx"),
        ("KD", "student.int8.onnx"),
        ("KD, quantization-aware", "student.int8.onnx"),
    ]
    assert {file.run.name for file in files} == {"teacher-id0", "alone-id5", "KD-id2", "KD, quantization-aware-id22"}


def test_the_table_by_hand(script: ModuleType) -> None:
    rows = [row("teacher", 0, "fp32", 0.6, (8.0, 100.0)), row("KD", 0, "fp32", 0.5, (2.0, 40.0))]
    rows += [row("KD", 1, "fp32", 0.52, (4.0, 60.0)), row("KD", 0, "int8", 0.49, (2.0, 80.0))]
    rows += [row("KD", 1, "int8", 0.5, (2.0, 120.0)), row("KD, quantization-aware", 0, "int8", 0.495, (2.0, 80.0))]
    rows += [row("KD, quantization-aware", 1, "int8", 0.515, (2.0, 80.0))]
    lines = script.table(rows).splitlines()
    assert lines[0] == "### onnxruntime 1"
    assert lines[4] == "| teacher | fp32 | 60.00 | 90.00 | 1.23 | 8.00 | 100.00 | 100.0 | 1.00 | 1.00 |"
    assert lines[5] == "| KD | fp32 | 51.00 ± 1.41 | 90.00 ± 0.00 | 1.23 | 3.00 | 50.00 | 85.0 | 2.67 | 2.00 |"
    assert lines[6] == "| KD | int8 | 49.50 ± 0.71 | 90.00 ± 0.00 | 1.23 | 2.00 | 100.00 | 82.5 | 4.00 | 1.00 |"
    assert lines[9].endswith(
        "fp32 of the same student -1.00, -2.00; quantization-aware training against int8 after training +0.50, +1.50."
    )
    assert {len(line.split("|")) for line in lines[2:8]} == {12}
    (teacher, *_, aware) = script.shown(rows)
    assert teacher == {
        "name": "teacher, fp32",
        "runtime": "onnxruntime 1",
        "accuracy": 0.6,
        "p50_ms_1": 8.0,
        "bytes": 1_234_567.0,
    }
    assert aware["accuracy"] == pytest.approx(0.505)
