"""generations: a run that is killed goes on to the same bits."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from kdlab.cli import main
from tests.cli.test_generations import NET, recipe, same, weights, write

pytestmark = pytest.mark.nightly


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Die(pl.Callback):
    """kill -9 where the environment says: GENERATION and STEP, or its end."""

    def _die(self, trainer: pl.Trainer, place: str) -> None:
        now = f"{Path(str(trainer.log_dir)).name} {place}"
        if trainer.logger and os.environ.get("DIE") == now:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self._die(trainer, str(trainer.global_step))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._die(trainer, "end")


def killed(config: str, moment: str) -> None:
    os.environ["DIE"] = moment
    main(["generations", "-c", config, "--count=2", "--out=killed"])


@pytest.mark.parametrize(
    "moments",
    [
        ["generation_1 15"],  # in the middle of an epoch: 10 steps each
        pytest.param(
            ["generation_0 3", "generation_0 end", "generation_1 2", "generation_1 25", "generation_1 end"],
            marks=pytest.mark.nightly,
        ),
    ],
)
def test_kills_change_no_bit(here: Path, moments: list[str], caplog: pytest.LogCaptureFixture) -> None:
    dropping = {**NET, "init_args": {**NET["init_args"], "dropout": 0.2}}  # type: ignore[dict-item]
    content = recipe({"student": dropping}, callbacks=["tests.cli.test_generations_kills.Die"], padding=1)
    config = write(here, content)
    for moment in moments:
        process = multiprocessing.get_context("fork").Process(target=killed, args=(config, moment))
        process.start()
        process.join(120)
        assert process.exitcode == -signal.SIGKILL
        name, step = moment.split()
        assert not (here / f"killed/{name}/student.safetensors").exists()
        last = here / f"killed/{name}/checkpoints/last.ckpt"
        if step != "end":
            kept = torch.load(last, weights_only=True)["global_step"] if last.exists() else 0
            assert kept == int(step) // 10 * 10
    main(["generations", "-c", config, "--count=2", "--out=killed"])
    assert "Restoring states" in caplog.text  # it went on, and did not begin again
    main(["generations", "-c", config, "--count=2", "--out=whole"])
    for number in (0, 1):
        logs = [(here / f"{name}/generation_{number}/metrics.csv").read_text() for name in ("killed", "whole")]
        assert logs[0] == logs[1]
        assert same(weights(here / "killed", number), weights(here / "whole", number))
        steps = [
            torch.load(here / f"{name}/generation_{number}/checkpoints/last.ckpt", weights_only=True)["global_step"]
            for name in ("killed", "whole")
        ]
        assert steps == [30, 30]
    assert (here / "killed/generations.csv").read_text() == (here / "whole/generations.csv").read_text()
