"""cache: a file of a recipe's teacher from the command line, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors import safe_open

from kdlab.cli import main
from tests.config.test_lightning_cli import work  # noqa: F401

STORED = ["--model.teacher=kdlab.members.Stored", "--model.teacher.path=t.safetensors"]


@pytest.mark.full
def test_cache_writes_what_a_fit_takes(work: Path, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    main(["cache", "kd.yaml", "--out=t.safetensors", "--dtype=float16", "--embedding", "--data.train_size=96"])
    assert "--model.teacher=kdlab.members.Stored --model.teacher.path=t.safetensors" in capsys.readouterr().out
    with safe_open(work / "t.safetensors", "pt") as file:
        assert file.get_slice("logits").get_shape() == [96, 10]
        assert file.get_slice("embedding").get_dtype() == "F16"
    assert not (work / "runs").exists()
    options = [
        "-c",
        "kd.yaml",
        "--trainer.max_epochs=1",
        '--model.knowledge={"s": {"loss": "kdlab.losses.SoftTargets"}}',
    ]
    main(["fit", *options, *STORED, "--data.train_size=96"])
    with pytest.raises(SystemExit):
        main(["fit", *options, *STORED, "--data.train_size=95"])
    assert "has outputs of 96 samples, but the training set has 95" in capsys.readouterr().err


@pytest.mark.full
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out=t.npy"], "--out is a .safetensors file"),
        (["--top-k=3", "--hidden"], "--hidden keeps all that --top-k would choose from"),
        (["--views=0"], "--views is at least 1"),
        (["--data.padding=1"], "--views=K writes those of K epochs"),
        (["--top-k=10"], "--top-k must be from 1 to 9, not 10"),
        (["--model.teacher=null", "--model.knowledge={}"], "the recipe has none"),
    ],
)
@pytest.mark.usefixtures("work")
def test_what_cannot_be_cached_is_refused(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["cache", "kd.yaml", *options])
    assert message in capsys.readouterr().err
    assert not Path("teacher.safetensors").exists()
