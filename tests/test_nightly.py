"""Slow tests: a run killed again and again, and a real distillation on CIFAR-100."""

from __future__ import annotations

import csv
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from tests.data.real import DATA, needs_data

pytestmark = pytest.mark.nightly

RESNET = {"class_path": "kdlab.models.resnet8", "init_args": {"num_classes": 10, "in_channels": 1}}
RECIPE = {
    "trainer": {"max_epochs": 12, "accelerator": "cpu", "enable_progress_bar": False, "log_every_n_steps": 10},
    "checkpoint": {"every_n_train_steps": 7, "every_n_epochs": None},
    "model": {
        "class_path": "kdlab.Distiller",
        "init_args": {
            "student": RESNET,
            "teacher": RESNET,
            "knowledge": {
                "soft": {"loss": "kdlab.losses.SoftTargets"},
                "hint": {"loss": "kdlab.losses.Hint", "student_layers": ["layer2"]},
            },
            "lr_scheduler": {"class_path": "torch.optim.lr_scheduler.OneCycleLR", "init_args": {"max_lr": 0.05}},
        },
    },
    "data": {"class_path": "kdlab.data.Digits", "init_args": {"batch_size": 32, "padding": 1}},
}


def test_five_kills_at_random_moments_change_no_bit(tmp_path: Path) -> None:
    (tmp_path / "kd.yaml").write_text(yaml.safe_dump(RECIPE))
    chance = random.Random(0)

    def start(version: str) -> subprocess.Popen[bytes]:
        last = tmp_path / "runs" / version / "checkpoints/last.ckpt"
        command = [sys.executable, "-m", "kdlab", "fit", "-c", "kd.yaml"]
        command += [f"--trainer.logger.init_args.version={version}"]
        command += [f"--ckpt_path={last}"] if last.exists() else []
        return subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)

    assert start("whole").wait() == 0
    last = tmp_path / "runs/killed/checkpoints/last.ckpt"
    kills, stamp = 0, 0.0
    while kills < 5:
        process = start("killed")
        while process.poll() is None and not (last.exists() and last.stat().st_mtime > stamp):
            time.sleep(0.02)
        time.sleep(chance.uniform(0.0, 0.6))
        if process.poll() is not None:
            break  # it was quicker than we are
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills, stamp = kills + 1, last.stat().st_mtime
    assert kills >= 3
    assert start("killed").wait() == 0
    states = [
        torch.load(tmp_path / f"runs/{name}/checkpoints/last.ckpt", weights_only=True) for name in ("whole", "killed")
    ]
    assert states[0]["global_step"] == states[1]["global_step"]
    first, second = (state["state_dict"] for state in states)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


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
