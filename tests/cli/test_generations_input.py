"""generations: what is refused before anything runs, and the shipped config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file, save_file

from kdlab.cli import main
from kdlab.studies.generations import train_generations
from tests.cli.test_generations import NET, SOFT, recipe, write
from tests.config_files import layers

pytestmark = pytest.mark.full

CONFIG = [word for path in layers("born_again") for word in ("-c", str(path))]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


TWO = {"class_path": "kdlab.CoTrainer", "init_args": {"networks": {"a": NET, "b": NET}, "knowledge": {"soft": SOFT}}}


@pytest.mark.parametrize(
    ("content", "options", "said"),
    [
        ({}, ["--count=0"], "at least 1, not 0"),
        ({}, ["--count=many"], "count: expected a whole number, not many."),
        ({}, ["--model.teacher=kdlab.models.mlp"], "drop model.teacher"),
        ({}, ["--model.knowledge=null"], "give model.knowledge"),
        ({}, ["--seed_everything=false"], "set seed_everything"),
        ({}, ["--trainer.devices=2"], "trainer.devices to 1"),
        ({}, ["--trainer.max_epoch=2"], "did you mean 'max_epochs'"),
        ({}, ['--model.knowledge.soft.student_layers=["hiden.0"]'], "'hidden.0'"),
        ({"model": TWO}, [], "not of a CoTrainer"),
        ({}, ["--out=ban.yaml"], "'ban.yaml' is a file"),
    ],
)
def test_bad_input_is_one_sentence_and_writes_nothing(
    here: Path, capsys: pytest.CaptureFixture[str], content: dict[str, Any], options: list[str], said: str
) -> None:
    write(here, {**recipe(), **content})
    with pytest.raises(SystemExit) as stop:
        main(["generations", "-c", "ban.yaml", *options])
    assert stop.value.code == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("kdlab generations: ")
    assert said in message
    assert [path.name for path in here.iterdir()] == ["ban.yaml"]


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["generations", "--help"])
    assert stop.value.code == 0
    assert "--count" in capsys.readouterr().out
    main(["--help"])
    assert "  generations  train" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore::UserWarning")  # a teacher of one step is near chance
def test_the_shipped_config(here: Path) -> None:
    small = ["--data=kdlab.data.Digits", "--data.train_size=64", "--trainer.max_epochs=1", "--trainer.accelerator=cpu"]
    network = [
        "--model.student=kdlab.models.resnet8",
        "--model.student.num_classes=10",
        "--model.student.in_channels=1",
    ]
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
    rows = train_generations([*CONFIG, *small, *network, *quiet], 2, here / "out")
    assert [row.members for row in rows] == [1, 1, 2]
    own = yaml.safe_load((here / "out/generation_1/config.yaml").read_text())["model"]["init_args"]
    assert own["knowledge"]["soft"]["loss"]["class_path"] == "kdlab.losses.SoftLabels"
    assert (own["task_weight"], own["knowledge"]["soft"]["weight"]) == (1.0, 1.0)


def test_a_generation_of_another_teacher_is_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write(here, recipe())
    main(["generations", "-c", config, "--count=2", "--out=out"])
    path = here / "out/generation_0/student.safetensors"
    save_file({name: value + 1 for name, value in load_file(path).items()}, path)
    with pytest.raises(SystemExit):
        main(["generations", "-c", config, "--count=2", "--out=out"])
    assert "'out/generation_1' was taught by another network than is in 'out/generation_0' now" in (
        capsys.readouterr().err
    )
