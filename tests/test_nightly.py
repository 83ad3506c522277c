"""Slow test: a real distillation on CIFAR-100; kills are in ``tests/faults``."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest

from tests.data.real import DATA, needs_data

pytestmark = pytest.mark.nightly


@needs_data
def test_a_student_learns_from_a_teacher_on_cifar_100(tmp_path: Path) -> None:
    """A resnet14 taught for two epochs by a resnet20 of three, on a fifth of CIFAR-100: far above chance, both."""
    root = Path(__file__).parent.parent
    data = [
        "--data=kdlab.data.ImageFolder",
        f"--data.root={DATA}/cifar100",
        "--data.train_size=10000",
        "--data.padding=4",
    ]
    common = [*data, "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
    kdlab = [sys.executable, "-m", "kdlab"]
    teacher = [*kdlab, "fit", "-c", str(root / "configs/cifar100/train.yaml"), *common, "--trainer.max_epochs=3"]
    subprocess.run(teacher, cwd=tmp_path, check=True)
    subprocess.run([*kdlab, "export", "runs/version_0"], cwd=tmp_path, check=True)
    recipe = ["-c", str(root / "configs/cifar100/distil.yaml"), "-c", str(root / "configs/knowledge/kd.yaml")]
    networks = ["--model.teacher=kdlab.models.resnet20", "--model.student=kdlab.models.resnet14"]
    weights = ["--model.teacher.weights=runs/version_0/student.safetensors", "--trainer.max_epochs=2"]
    subprocess.run([*kdlab, "fit", *recipe, *common, *networks, *weights], cwd=tmp_path, check=True)
    with (tmp_path / "runs/version_1/metrics.csv").open() as file:
        last = [row for row in csv.DictReader(file) if row["val/student_accuracy"]][-1]
    assert float(last["val/teacher_accuracy"]) > 0.05
    assert float(last["val/student_accuracy"]) > 0.04
    assert float(last["val/agreement"]) > 0.05
