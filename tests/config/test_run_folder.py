"""An interrupted checkpoint write leaves the previous checkpoint."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pytorch_lightning.loggers import CSVLogger

from kdlab import InputError
from kdlab.config.run_errors import input_error
from kdlab.config.run_folder import _create, refuse_other_job
from kdlab.modules.checkpoint_io import AtomicCheckpointIO


def test_an_interrupted_write_leaves_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "checkpoints" / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"epoch": 1}, path)

    def half(checkpoint: Any, file: Any) -> None:
        file.write(b"half of it")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(KeyboardInterrupt):
        AtomicCheckpointIO().save_checkpoint({"epoch": 2}, path)
    assert torch.load(path, weights_only=True) == {"epoch": 1}
    assert [each.name for each in path.parent.iterdir()] == ["last.ckpt"]


def test_two_runs_that_start_at_once_have_two_folders(tmp_path: Path) -> None:
    first, second = (CSVLogger(tmp_path, name="") for _ in range(2))
    assert [_create(logger)[0].name for logger in (first, second)] == ["version_0", "version_1"]


def test_a_folder_made_meanwhile_is_left_to_the_other_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mkdir = Path.mkdir

    def late(path: Path, *args: Any, **options: Any) -> None:
        monkeypatch.setattr(Path, "mkdir", mkdir)
        path.mkdir(parents=True)  # the other process
        mkdir(path, *args, **options)

    monkeypatch.setattr(Path, "mkdir", late)
    folder, created = _create(CSVLogger(tmp_path, name=""))
    assert (folder.name, created) == ("version_1", [folder])


def test_a_new_slurm_job_resumes_no_other_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer: Any = SimpleNamespace(default_root_dir=str(tmp_path))
    (tmp_path / "hpc_ckpt_1.ckpt").touch()
    refuse_other_job(trainer)  # without SLURM Lightning does not look for it
    for name, value in {"NTASKS": "1", "JOB_NAME": "kd", "JOB_ID": "7"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    with pytest.raises(InputError, match=r"hpc_ckpt_1\.ckpt' is of another SLURM job"):
        refuse_other_job(trainer)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")  # this job, requeued
    refuse_other_job(trainer)


def test_no_wandb_account_is_one_sentence() -> None:
    from wandb.errors import UsageError

    refused = input_error(UsageError("No API key configured. Use `wandb login` to log in."))
    assert str(refused).startswith("Weights & Biases: No API key configured.")
    assert str(refused).endswith("set WANDB_MODE=offline.")
