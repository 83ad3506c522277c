"""A disk that is full or read-only: a clear error, and what was written before stays whole."""

from __future__ import annotations

import csv
import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from kdlab.config.csv_log import CSVLogger
from kdlab.config.lightning_cli import resolve, take_up
from kdlab.config.run_folder import placed
from kdlab.errors import InputError
from kdlab.studies.ledger import FIELDS, FINISHED, Ledger
from tests.faults.jobs import MLP, SOFT, WIDE

FULL = r"No space left|cannot be written|needs .* are free|make room"


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A disk of its own, of 2 MB."""
    folder = tmp_path_factory.mktemp("disk")
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True)
    if done.returncode:
        pytest.skip("no rights to mount a small disk")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@contextmanager
def filled(folder: Path) -> Iterator[None]:
    """No space is left."""
    filler = folder / "filler"
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass
    yield
    filler.unlink()


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Nothing can be written, not even by root."""
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    yield
    subprocess.run(["mount", "-o", "remount,rw", str(folder)], check=True)


def config(folder: Path, epochs: int, **options: Any) -> dict[str, Any]:
    networks = [f"--model.student={MLP}", f"--model.teacher={WIDE}", f"--model.knowledge={json.dumps({'soft': SOFT})}"]
    trainer = [f"--trainer.max_epochs={epochs}", "--trainer.accelerator=cpu", "--trainer.num_sanity_val_steps=0"]
    data = ["--data=kdlab.data.Digits", "--data.train_size=96", "--data.batch_size=32"]
    more = [f"--{name}={value}" for name, value in options.items()]
    return placed(resolve(["--model=kdlab.Distiller", *networks, *trainer, *data, *more]), folder)


@pytest.mark.full
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("how", [filled, read_only])
def test_the_last_checkpoint_and_the_log_stay(disk: Path, how: Any) -> None:
    folder = disk / how.__name__
    take_up(config(folder, 1), folder)
    last = folder / "checkpoints/last.ckpt"
    before = {path: path.read_bytes() for path in (last, folder / "metrics.csv")}
    with how(disk), pytest.raises((InputError, OSError), match=rf"{FULL}|[Rr]ead-only"):
        take_up(config(folder, 2), folder)
    assert last.read_bytes() == before[last]
    assert before[folder / "metrics.csv"] in [path.read_bytes() for path in folder.glob("metrics*.csv")]
    take_up(config(folder, 2), folder)  # there is room again
    assert torch.load(last, weights_only=True)["global_step"] == 6
    assert not list(folder.rglob("*.tmp"))


@pytest.mark.full
@pytest.mark.filterwarnings("ignore")
def test_a_cache_needs_its_room_before_the_first_step(disk: Path, tmp_path: Path) -> None:
    cache = {"model.teacher_cache.folder": disk / "cache", "model.teacher_cache.views": 2}
    with filled(disk), pytest.raises(InputError, match=FULL):
        take_up(config(tmp_path / "run", 1, **cache), tmp_path / "run")
    take_up(config(tmp_path / "run", 1, **cache), tmp_path / "run")


@pytest.mark.parametrize("how", [filled, read_only])
def test_a_ledger_keeps_its_rows(disk: Path, how: Any) -> None:
    path = disk / f"{how.__name__}.csv"
    row = {**dict.fromkeys(FIELDS, None), "run": "one", "status": FINISHED, "accuracy": 0.5}
    Ledger(path).append(row)
    before = path.read_bytes()
    with how(disk), pytest.raises((InputError, OSError), match=rf"{FULL}|[Rr]ead-only"):
        Ledger(path).append({**row, "run": "x" * 9000})
    assert [each["run"] for each in Ledger(path).rows] == ["one"]
    Ledger(path).append({**row, "run": "two"})
    assert [each["run"] for each in Ledger(path).rows] == ["one", "two"]
    assert path.read_bytes().startswith(before)


def test_a_log_gets_columns_without_losing_rows(disk: Path) -> None:
    logger = CSVLogger(disk, "", "log")
    logger.log_metrics({"loss": 1.5}, 0)
    logger.save()
    logger.log_metrics({"loss": 1.0, "val": 2.0}, 1)  # a wider header: all rows are written anew
    with filled(disk), pytest.raises((InputError, OSError), match=FULL):
        logger.save()
    with (disk / "log/metrics.csv").open() as file:
        assert [row["loss"] for row in csv.DictReader(file)] == ["1.5"]
