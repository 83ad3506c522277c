"""Two processes write one offline W&B run, with every number in it; a resumed run goes on where it ended."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import yaml
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import WandbLogger

from tests.modules.test_ddp import soft_and_hint
from tests.modules.test_launchers import RECIPE
from tests.modules.tiny import digits, distiller, trainer

pytestmark = pytest.mark.full

ROOT = Path(__file__).parents[2]


def a_run(folder: Path, epochs: int, **options: Any) -> None:
    """What a user's script does; run as a script below, so that DDP starts it a second time."""
    torch.set_num_threads(1)
    last = folder / "last.ckpt"
    logger = WandbLogger(project="kdlab", save_dir=folder, offline=True)
    checkpoint = ModelCheckpoint(folder, save_last=True, save_top_k=0, every_n_epochs=1, enable_version_counter=False)
    pl.seed_everything(0, verbose=False)
    run = trainer(
        epochs,
        logger=logger,
        callbacks=[checkpoint],
        enable_checkpointing=True,
        limit_val_batches=1.0,
        log_every_n_steps=2,
        **options,
    )
    module = distiller(knowledge=soft_and_hint())
    run.fit(module, digits(), ckpt_path=last if last.exists() else None)
    if run.is_global_zero:
        logger.experiment.finish()


def records(data: bytes) -> Iterator[bytes]:
    """A .wandb file is a LevelDB log: after 7 bytes, blocks of 32 KiB with chunks (checksum, length, kind, bytes)."""
    place, parts = 7, []
    while place + 7 <= len(data):
        if (left := 32768 - place % 32768) < 7:
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        parts.append(data[place + 7 : place + 7 + length])
        place += 7 + length
        if kind in (1, 4):  # whole, or the last of several
            yield b"".join(parts)
            parts = []


def group_of(run: Path) -> str:
    from wandb.proto import wandb_internal_pb2

    (file,) = run.glob("*.wandb")
    for data in records(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "run":
            return str(record.run.run_group)
    raise AssertionError(f"{file} has no run record")


def history(run: Path, seconds: float = 60.0) -> list[dict[str, Any]]:
    """The rows that a run recorded; the W&B service may still write them when ``finish()`` has returned."""
    from wandb.proto import wandb_internal_pb2

    end = time.monotonic() + seconds
    while True:
        rows, ended = [], False
        (file,) = run.glob("*.wandb")
        for data in records(file.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            if record.WhichOneof("record_type") == "history":
                items = record.history.item
                rows.append({item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items})
            ended = ended or record.WhichOneof("record_type") == "exit"
        if ended:
            return rows
        assert time.monotonic() < end, f"{file} has no exit record: the run was not finished"
        time.sleep(0.1)


SECRETS = {
    "WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567",
    "HF_TOKEN": "hf_planted_in_the_environment",
    "AWS_SECRET_ACCESS_KEY": "aws_planted_in_the_environment",
}


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    settings = {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    settings |= {f"WANDB_{name}_DIR": str(tmp_path / "own") for name in ("CACHE", "CONFIG", "DATA", "ARTIFACT")}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    return tmp_path


def test_a_resumed_run_joins_the_group_and_no_secret_is_kept(offline: Path) -> None:
    (offline / "kd.yaml").write_text(yaml.safe_dump(RECIPE))
    options = ["-c", "kd.yaml", "-c", str(ROOT / "configs/logger/wandb.yaml")]
    texts = []
    for more in ([], ["--ckpt_path=runs/version_0/checkpoints/last.ckpt", "--trainer.max_epochs=3"]):
        command = [sys.executable, "-W", "ignore", "-m", "kdlab", "fit", *options, *more]
        env = os.environ | SECRETS | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, cwd=offline, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        texts.append(done.stderr)
    first, second = sorted((offline / "runs/wandb").glob("offline-run-*"), key=lambda path: path.stat().st_mtime)
    group = group_of(first)
    assert group.startswith("kdlab-")
    assert group == group_of(second)
    assert "continues in the group" not in texts[0]
    assert f"this run continues in the group '{group}'" in texts[1]
    assert (offline / "runs/version_0/metrics.csv").exists()  # beside W&B
    files = [path for path in offline.rglob("*") if path.is_file()]
    assert {path.name for path in files} >= {"last.ckpt", "config.yaml", "hparams.yaml", "metrics.csv"}
    assert any(path.suffix == ".wandb" for path in files)
    for path in files:
        assert not any(secret.encode() in path.read_bytes() for secret in SECRETS.values()), path


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_two_processes_write_one_run_and_a_resumed_run_goes_on(offline: Path) -> None:
    tmp_path = offline
    script = tmp_path / "script.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from pathlib import Path\nfrom tests.modules.test_wandb import a_run\n"
        f"a_run(Path({str(tmp_path)!r}), 2, strategy='ddp', devices=2)\n"
    )
    command = [sys.executable, "-W", "ignore", str(script)]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (first,) = (tmp_path / "wandb").glob("offline-run-*")

    terms = [f"{kind}/{name}" for kind in ("loss", "weight") for name in ("task", "soft", "hint")]
    terms += [f"loss/{name}_weighted" for name in ("task", "soft", "hint")] + ["loss/total"]
    measures = ["loss", "student_accuracy", "teacher_accuracy", "gap", "agreement", "kl_to_teacher", "student_ece"]
    wanted = {*terms, *(f"val/{name}" for name in [*measures, "retention"]), "epoch", "trainer/global_step"}
    rows = history(first)
    assert wanted <= {key for row in rows for key in row}

    a_run(tmp_path, 3)
    (second,) = set((tmp_path / "wandb").glob("offline-run-*")) - {first}
    resumed = history(second)
    assert wanted <= {key for row in resumed for key in row}
    for part in (rows, resumed):
        steps = [row["_step"] for row in part]
        assert steps == sorted(set(steps))
    progress = [row["trainer/global_step"] for row in rows if "loss/total" in row]
    more = [row["trainer/global_step"] for row in resumed if "loss/total" in row]
    assert progress == [1, 3, 4, 5, 7, 9]  # every second step, and what is left at an epoch's end
    assert more == [11, 13, 14]
    validated = [row["trainer/global_step"] for row in [*rows, *resumed] if "val/student_accuracy" in row]
    assert validated == [4, 9, 14]
