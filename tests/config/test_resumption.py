"""A run names its folder and how to resume it, and goes on there with one log."""

from __future__ import annotations

import csv
import shlex
import signal
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import yaml

from kdlab import InputError
from kdlab.cli import main
from kdlab.config.csv_log import Continued, CSVLogger
from kdlab.config.run_arguments import with_run_folders
from kdlab.config.run_folder import run_loggers
from tests.config.test_lightning_cli import RECIPE
from tests.tiers import tiered

STOPPING = """\
import os, signal
import pytorch_lightning as pl
from kdlab import InputError


class Stop(pl.Callback):
    def __init__(self, kind: str, epoch: int) -> None:
        self.kind, self.epoch = kind, epoch

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) == (self.epoch, 1):
            if self.kind in ("SIGINT", "SIGTERM"):
                os.kill(os.getpid(), getattr(signal, self.kind))
            elif self.kind == "input":
                raise InputError("Not this.")
            else:
                raise RuntimeError("a defect")
"""


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    init: dict[str, Any] = {**RECIPE["model"]["init_args"], "knowledge": {"soft": {"loss": "kdlab.losses.SoftTargets"}}}  # type: ignore[dict-item, index]
    recipe = {**RECIPE, "model": {**RECIPE["model"], "init_args": init}}  # type: ignore[dict-item]
    recipe["trainer"] = {**RECIPE["trainer"], "max_epochs": 3}  # type: ignore[dict-item]
    (tmp_path / "kd.yaml").write_text(yaml.safe_dump(recipe))
    (tmp_path / "stopping.py").write_text(STOPPING)
    return tmp_path


def stopped(kind: str, epoch: int = 1) -> list[str]:
    callback = f"--trainer.callbacks=[{{class_path: stopping.Stop, init_args: {{kind: {kind}, epoch: {epoch}}}}}]"
    return ["fit", "-c", "kd.yaml", callback]


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(("kind", "status"), tiered([("SIGINT", 130), ("SIGTERM", 143)], [("SIGINT", 130)]))
def test_interrupted_run_ends_with_the_command_that_resumes_it(
    kind: str, status: int, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    try:
        with pytest.raises(SystemExit) as stop:
            main(stopped(kind))
    finally:
        signal.signal(signal.SIGINT, handler)  # Lightning ignores further ones
    lines = capsys.readouterr().out.splitlines()
    assert (stop.value.code, lines[0]) == (status, "Run folder: runs/version_0")
    assert lines[-1] == "Interrupted. Resume: kdlab fit --ckpt_path=runs/version_0"

    main([*shlex.split(lines[-1].partition("kdlab ")[2]), "--trainer.callbacks=null"])
    assert [path.name for path in (work / "runs").iterdir()] == ["version_0"]
    main(["fit", "-c", "kd.yaml"])  # never stopped
    log, whole = (rows(work / f"runs/version_{number}/metrics.csv") for number in (0, 1))
    assert log == whole
    first, second = (
        torch.load(work / f"runs/version_{number}/checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for number in (0, 1)
    )
    assert all(torch.equal(first[key], second[key]) for key in second)


def test_error_after_the_first_checkpoint_ends_with_the_command(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(stopped("input"))
    shown = capsys.readouterr().err.splitlines()
    assert shown[-2:] == ["kdlab fit: Not this.", "Stopped. Resume: kdlab fit --ckpt_path=runs/version_0"]
    with pytest.raises(RuntimeError) as error:
        main(stopped("defect"))
    assert "Resume: kdlab fit --ckpt_path=runs/version_1" in "".join(
        getattr(error.value, "__notes__", [capsys.readouterr().out])
    )


def test_error_before_the_first_checkpoint_names_no_command(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(stopped("input", epoch=0))
    assert capsys.readouterr().err.splitlines()[-1] == "kdlab fit: Not this."


def test_a_finished_run_says_where_it_is(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["fit", "-c", "kd.yaml", "--trainer.max_epochs=1"])
    said = capsys.readouterr().out.splitlines()[-1]
    assert said == "Done: runs/version_0. To train longer: kdlab fit --ckpt_path=runs/version_0 --trainer.max_epochs=N"
    assert "version: null" in (work / "runs/version_0/config.yaml").read_text()  # else the recipe could not run again


ONE_CYCLE = "--model.lr_scheduler={class_path: torch.optim.lr_scheduler.OneCycleLR, init_args: {max_lr: 0.1}}"
COSINE = "--model.lr_scheduler={class_path: torch.optim.lr_scheduler.CosineAnnealingLR, init_args: {T_max: %d}}"


@pytest.mark.parametrize(
    ("options", "longer"),
    [
        (["--trainer.max_epochs=1", ONE_CYCLE], "-c runs/version_0/config.yaml --trainer.max_epochs=2"),
        (["--trainer.max_epochs=1", COSINE % 1], "-c runs/version_0/config.yaml --trainer.max_epochs=2"),
        (["--trainer.max_epochs=1", COSINE % 2], "--ckpt_path=runs/version_0 --trainer.max_epochs=2"),
        (["--trainer.max_steps=2", "--trainer.max_epochs=-1"], "--ckpt_path=runs/version_0 --trainer.max_steps=4"),
    ],
)
@pytest.mark.full
def test_the_command_for_a_longer_run_works(
    options: list[str], longer: str, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["fit", "-c", "kd.yaml", *options])
    command = capsys.readouterr().out.splitlines()[-1].rpartition("kdlab fit ")[2]
    assert command.replace("=N", f"={longer.rpartition('=')[2]}") == longer
    main(["fit", *shlex.split(longer)])
    fresh = longer.startswith("-c")
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"Done: runs/version_{int(fresh)}.")
    assert len(list((work / "runs").iterdir())) == 1 + fresh


@pytest.mark.parametrize(
    ("arguments", "expanded"),
    [
        (["fit", "--ckpt_path=run"], ["fit", "--config=run/config.yaml", "--ckpt_path=run/checkpoints/last.ckpt"]),
        (["--ckpt_path", "run"], ["--config=run/config.yaml", "--ckpt_path", "run/checkpoints/last.ckpt"]),
        (["fit", "-c", "x", "--ckpt_path=run"], ["fit", "-c", "x", "--ckpt_path=run/checkpoints/last.ckpt"]),
        (["fit", "--model=M", "--ckpt_path=run"], ["fit", "--model=M", "--ckpt_path=run/checkpoints/last.ckpt"]),
        (["fit", "--ckpt_path=last"], ["fit", "--ckpt_path=last"]),
        (["fit", "--ckpt_path=run/x.ckpt"], ["fit", "--ckpt_path=run/x.ckpt"]),
    ],
)
def test_a_runs_folder_names_checkpoint_and_config(
    arguments: list[str], expanded: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").write_text("a: 1")
    assert with_run_folders(arguments) == expanded


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no config\.yaml, so it is no run that kdlab trained"):
        with_run_folders(["test", f"--ckpt_path={tmp_path}"])


def test_rows_after_the_checkpoint_leave_the_log(tmp_path: Path) -> None:
    text = "epoch,loss,step,val\n0,0.5,1,\n0,,1,0.25\n0,0.125,1,\n1,0.75,2,\n"
    (tmp_path / "metrics.csv").write_text(text)
    log = CSVLogger(tmp_path.parent, name="", version=tmp_path.name)
    log.continued = Continued(tmp_path, 2, ({"epoch": 0, "loss": 0.125}, 1))
    log.log_metrics({"epoch": 1, "new": 3.0}, 2)
    log.save()
    assert [{k: v for k, v in row.items() if v} for row in rows(tmp_path / "metrics.csv")] == [
        {"epoch": "0", "loss": "0.5", "step": "1"},
        {"epoch": "0", "step": "1", "val": "0.25"},
        {"epoch": "1", "new": "3.0", "step": "2"},
    ]


def test_a_csv_log_is_added_and_comes_first(tmp_path: Path) -> None:
    class Other(pl.loggers.logger.DummyLogger):
        pass

    other, csv_log = Other(), CSVLogger(tmp_path, name="", version="mine")
    assert run_loggers([other, csv_log], tmp_path, None) == [csv_log, other]
    first, second = run_loggers([other], tmp_path, None)
    assert (type(first), second) == (CSVLogger, other)
    (tmp_path / "old").mkdir()
    kept, _ = run_loggers([csv_log, other], tmp_path, Continued(tmp_path / "old"))
    assert kept is csv_log  # its version was chosen
    moved, _ = run_loggers([CSVLogger(tmp_path, name=""), other], tmp_path, Continued(tmp_path / "old"))
    assert Path(str(moved.log_dir)) == tmp_path / "old"
