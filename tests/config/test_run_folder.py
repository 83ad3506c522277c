"""An interrupted checkpoint write leaves the previous checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning.loggers import CSVLogger

from kdlab.config.run_folder import _create
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
