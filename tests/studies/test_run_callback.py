"""What a run leaves behind while it trains: whole files, its epochs through a checkpoint, and the time that counts."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl

from kdlab.errors import InputError
from kdlab.files import read_json, write_json, write_text
from kdlab.studies import run_callback as record
from kdlab.studies.run_callback import STATUS, Record


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(record, "time", made)
    return made


def trainer(epoch: int = 0, accuracy: float | None = None, **more: Any) -> Any:
    metrics = {} if accuracy is None else {"val/student_accuracy": accuracy}
    known = {"current_epoch": epoch, "max_epochs": 5, "callback_metrics": metrics, "sanity_checking": False}
    return SimpleNamespace(**{**known, "is_global_zero": True, **more})


def epochs(one: Record, clock: Clock, *accuracies: float, start: int = 0, seconds: float = 10.0) -> None:
    """Train and validate an epoch for each accuracy."""
    module = pl.LightningModule()
    for epoch, accuracy in enumerate(accuracies, start):
        clock.now += seconds
        one.on_validation_end(trainer(epoch, accuracy), module)
        one.on_train_epoch_end(trainer(epoch, accuracy), module)


def test_it_says_how_far_the_run_is(tmp_path: Path, clock: Clock) -> None:
    one = Record(str(tmp_path))
    one.on_train_start(trainer(), pl.LightningModule())
    assert read_json(tmp_path / STATUS) == {"state": "running", "epoch": 0, "epochs": 5, "seconds": 0.0}
    epochs(one, clock, 0.5, 0.75)
    assert read_json(tmp_path / STATUS) == {"state": "running", "epoch": 2, "epochs": 5, "seconds": 20.0}
    one.on_train_epoch_end(trainer(2, is_global_zero=False), pl.LightningModule())
    assert (read_json(tmp_path / STATUS) or {})["epoch"] == 2, "of several processes the first writes"


def test_it_keeps_each_epochs_accuracy_and_knows_the_first_best(tmp_path: Path, clock: Clock) -> None:
    one = Record(str(tmp_path))
    assert one.best() is None
    one.on_train_start(trainer(), pl.LightningModule())
    epochs(one, clock, 0.5, 0.75, 0.625, 0.75)
    assert one.accuracies == [(1, 0.5), (2, 0.75), (3, 0.625), (4, 0.75)]
    assert one.best() == (2, 0.75)


def test_it_is_the_deployed_networks_accuracy_where_there_is_one(tmp_path: Path, clock: Clock) -> None:
    one, module = Record(str(tmp_path)), pl.LightningModule()
    one.on_train_start(trainer(), module)
    metrics = {"val/student_accuracy": 0.25, "val/deployed_accuracy": 0.5}
    one.on_validation_end(trainer(0, callback_metrics=metrics), module)
    one.on_validation_end(trainer(1, callback_metrics={"val/loss": 1.0}), module)
    assert one.accuracies == [(1, 0.5)]


def test_the_sanity_check_and_validation_alone_are_no_epochs(tmp_path: Path, clock: Clock) -> None:
    one, module = Record(str(tmp_path)), pl.LightningModule()
    one.on_validation_end(trainer(0, 0.1), module)
    one.on_train_start(trainer(), module)
    one.on_validation_end(trainer(0, 0.1, sanity_checking=True), module)
    assert one.accuracies == []


def test_resumed_run_keeps_epochs_and_drops_lost_time(tmp_path: Path, clock: Clock) -> None:
    one = Record(str(tmp_path))
    one.on_train_start(trainer(), pl.LightningModule())
    epochs(one, clock, 0.5, 0.75)
    clock.now += 1  # until the checkpoint is written
    kept = json.loads(json.dumps(one.state_dict()))
    assert kept["seconds"] == 21.0
    epochs(one, clock, 0.99, start=2)  # lost with the process
    clock.now += 5000.0
    again = Record(str(tmp_path))
    again.load_state_dict(kept)
    assert again.accuracies == [(1, 0.5), (2, 0.75)]
    clock.now += 3.0  # setting up is no training
    again.on_train_start(trainer(2), pl.LightningModule())
    assert (read_json(tmp_path / STATUS) or {})["seconds"] == 21.0
    epochs(again, clock, 0.625, 0.875, start=2)
    assert (again.best(), again.accuracies[2:]) == ((4, 0.875), [(3, 0.625), (4, 0.875)])
    assert again.state_dict()["seconds"] == 41.0


def test_a_checkpoint_without_a_training_has_no_time(tmp_path: Path) -> None:
    assert Record(str(tmp_path)).state_dict() == {"accuracies": [], "seconds": 0.0}


def test_files_are_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "deep" / "file.json"
    write_json(path, {"a": 0.1 + 0.2})
    (kept,) = (read_json(path) or {}).values()
    assert struct.pack("d", kept) == struct.pack("d", 0.1 + 0.2)
    with path.open() as reading:  # who has it open reads on in the whole old one
        write_json(path, {"a": "b" * 9})
        assert reading.read() == json.dumps({"a": kept}, indent=1) + "\n"
    before = path.read_text()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="No space"):
        write_text(path, "half of it")
    assert path.read_text() == before
    assert list(path.parent.iterdir()) == [path], "and nothing lies about"


@pytest.mark.parametrize("content", [None, b"", b'{"a": 1', b"[1]", b'"a"', b"\xff\xfe", b"null"])
def test_a_file_that_says_nothing_is_as_good_as_none(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "file.json").write_bytes(content)
    assert read_json(tmp_path / "file.json") is None
