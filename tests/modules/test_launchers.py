"""Runs of two processes (gloo, CPU), however they are started and sharded, repeat the run of one."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = pytest.mark.full

ROOT = Path(__file__).parents[2]
MLP = {"class_path": "kdlab.models.mlp", "init_args": {"in_features": 64, "hidden": [16], "num_classes": 10}}
HINT = {"class_path": "kdlab.losses.Hint", "init_args": {"regressor": "1x1"}}
RECIPE: dict[str, Any] = {
    "trainer": {
        "max_epochs": 2,
        "accelerator": "cpu",
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 1,
    },
    "model": {
        "class_path": "kdlab.Distiller",
        "init_args": {
            "student": MLP,
            "teacher": MLP,
            "knowledge": {
                "hint": {"loss": HINT, "student_layers": ["hidden.0"]},
                "rkd": {"loss": "kdlab.losses.RKDDistance", "weight": 0.1, "gather": True},
            },
        },
    },
    "data": {"class_path": "kdlab.data.Digits", "init_args": {"batch_size": 64, "train_size": 256}},
}
FSDP2 = {
    "class_path": "pytorch_lightning.strategies.ModelParallelStrategy",
    "init_args": {"data_parallel_size": 2, "tensor_parallel_size": 1, "save_distributed_checkpoint": False},
}
TORCHRUN = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=29577"]


def slurm(rank: int) -> dict[str, str]:
    """The variables that srun sets for each of two tasks on one node."""
    values = {"NTASKS": 2, "NTASKS_PER_NODE": 2, "PROCID": rank, "LOCALID": rank, "NODEID": 0, "JOB_ID": 31337}
    values |= {"JOB_NAME": "kd", "JOB_NUM_NODES": 1, "NODELIST": "localhost", "JOB_NODELIST": "localhost"}
    return {f"SLURM_{name}": str(value) for name, value in values.items()}


def start(folder: Path, launcher: Sequence[str], trainer: Mapping[str, Any], env: Mapping[str, str]) -> Any:
    folder.mkdir(exist_ok=True)
    (folder / "kd.yaml").write_text(yaml.safe_dump({**RECIPE, "trainer": RECIPE["trainer"] | dict(trainer)}))
    command = [sys.executable, *launcher, "-m", "kdlab", "fit", "-c", "kd.yaml"]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    env = inherited | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | dict(env)
    return subprocess.Popen(command, cwd=folder, env=env, stderr=subprocess.PIPE, text=True)


def ended(*processes: Any) -> str:
    texts = [process.communicate(timeout=300)[1] for process in processes]
    assert all(process.returncode == 0 for process in processes), texts
    return "".join(texts)


def numbers(folder: Path) -> list[dict[str, float]]:
    (file,) = folder.glob("runs/*/metrics.csv")
    with file.open() as opened:
        return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(opened)]


def test_torchrun_slurm_and_fsdp2_equal_one_process(tmp_path: Path) -> None:
    ended(start(tmp_path / "one", [], {}, {}))
    two = {"devices": 2, "strategy": "ddp"}
    text = ended(start(tmp_path / "torchrun", TORCHRUN, two, {}))
    assert text.count("A step takes 64 samples (32 in each of 2 processes); learning rate 0.05.") == 1
    ended(*[start(tmp_path / "slurm", [], two, slurm(rank)) for rank in (0, 1)])
    ended(start(tmp_path / "fsdp2", TORCHRUN, {"devices": 2, "strategy": FSDP2}, {}))
    one = numbers(tmp_path / "one")
    for kind in ("torchrun", "slurm", "fsdp2"):
        rows = numbers(tmp_path / kind)
        assert len(rows) == len(one) == 10
        for row, expected in zip(rows, one, strict=True):
            assert row == pytest.approx(expected, abs=2e-6), kind
