"""Configs merged in order: knowledge adds up, and a part alone is an error."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import yaml

from kdlab.cli import main
from kdlab.config.config_merge import merge_configs
from kdlab.config.lightning_cli import QUIET, build
from kdlab.data import CIFAR100, Digits
from tests.config.test_lightning_cli import RECIPE

HINT = {"loss": "kdlab.losses.Hint", "student_layers": ["hidden.0"], "teacher_layers": ["hidden.0"]}


def part(knowledge: dict[str, Any], **options: Any) -> str:
    return yaml.safe_dump({"model": {"init_args": {"knowledge": knowledge, **options}}})


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    recipe = yaml.safe_load(yaml.safe_dump(RECIPE))
    recipe["model"]["init_args"]["knowledge"] = {}
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(recipe))
    soft = {"class_path": "kdlab.losses.SoftTargets", "init_args": {"temperature": 2.0}}
    (tmp_path / "kd.yaml").write_text(part({"soft": {"loss": soft, "weight": 0.9}}, task_weight=0.1))
    (tmp_path / "hint.yaml").write_text(part({"hint": {"weight": 5.0, **HINT}}))
    (tmp_path / "softer.yaml").write_text(part({"soft": {"loss": soft, "weight": 0.5}}))
    return tmp_path


def columns(work: Path) -> dict[str, float]:
    with (work / "runs/version_0/metrics.csv").open() as file:
        return {name: float(value) for row in csv.DictReader(file) for name, value in row.items() if value}


@pytest.mark.parametrize("flag", ["-c", "--config"])
def test_two_recipes_teach_both(work: Path, flag: str) -> None:
    main(["fit", flag, "base.yaml", flag, "kd.yaml", flag, "hint.yaml"])
    logged = columns(work)
    assert (logged["weight/soft"], logged["weight/hint"]) == (pytest.approx(0.9), 5.0)
    assert logged["weight/task"] == pytest.approx(0.1)
    saved = yaml.safe_load((work / "runs/version_0/config.yaml").read_text())
    assert set(saved["model"]["init_args"]["knowledge"]) == {"soft", "hint"}


@pytest.mark.full
def test_one_name_is_one_knowledge_and_the_last_word_counts(work: Path) -> None:
    main(["fit", "--config=base.yaml", "--config=kd.yaml", "--config=hint.yaml", "--config=softer.yaml"])
    assert columns(work)["weight/soft"] == 0.5
    assert columns(work)["weight/hint"] == 5.0


def test_what_needs_no_change_is_left_alone(work: Path) -> None:
    given = ["-c", "base.yaml", "-c", "kd.yaml", "--trainer.max_epochs=1"]
    assert merge_configs(given) == given


@pytest.mark.full
def test_knowledge_by_option_needs_none_in_the_recipe(work: Path) -> None:
    main(["fit", "-c", "base.yaml", "--model.knowledge.soft.loss=kdlab.losses.SoftTargets"])
    assert columns(work)["weight/soft"] == 1.0


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (["-c", "bare.yaml", "--model.knowledge.mine.loss=L", "--model.knowledge.mine.weight=2"], 2),
        (["-c", "bare.yaml", "--model.knowledge.mine.loss", "L"], 2),
        (["-c", "bare.yaml", "--model.init_args.knowledge.mine.loss=L"], 2),
        (["--model.knowledge.mine.loss=L", "-c", "kd.yaml", "-c", "bare.yaml"], 0),
        (["-c", "kd.yaml", "-c", "bare.yaml", "--model.knowledge.mine.loss=L"], None),
        (["-c", "bare.yaml", "--model.knowledge={}", "--model.knowledge.mine.loss=L"], None),
        (["-c", "bare.yaml", "--model.knowledge", "{}", "--model.knowledge.mine.loss=L"], None),
        (["-c", "bare.yaml", "--model.knowledge.mine.loss=L", "--model.knowledge={}"], 2),
        (["-c", "empty.yaml", "--model.knowledge.mine.loss=L"], 2),
        (["-c", "bare.yaml", "--model.task_weight=1"], None),
    ],
)
def test_an_option_adds_to_what_a_recipe_teaches_or_to_nothing(
    work: Path, given: list[str], wanted: int | None
) -> None:
    bare = {"model": {"class_path": "kdlab.Distiller", "init_args": {"task_weight": 1.0}}}
    (work / "bare.yaml").write_text(yaml.safe_dump(bare))
    (work / "empty.yaml").write_text("model:\n  class_path: kdlab.Distiller\n  init_args:\n")
    room = [] if wanted is None else ["--model.knowledge={}"]
    named, place = ["--data=kdlab.data.Digits", "--model=kdlab.Distiller"], wanted or 0
    assert merge_configs([*named, *given]) == [*named, *given[:place], *room, *given[place:]]


@pytest.mark.full
def test_an_own_loss_by_options_needs_no_knowledge_in_the_recipe(work: Path) -> None:
    recipe = yaml.safe_load((work / "base.yaml").read_text())
    del recipe["model"]["init_args"]["knowledge"]
    (work / "bare.yaml").write_text(yaml.safe_dump(recipe))
    own = ["--model.knowledge.mine.loss=kdlab.losses.SoftTargets", "--model.knowledge.mine.weight=0.25"]
    main(["fit", "-c", "bare.yaml", *own])
    assert columns(work)["weight/mine"] == 0.25


@pytest.mark.parametrize(
    "arguments", [["check", "-c", "base.yaml", "-c", "kd.yaml"], ["check", "base.yaml", "-c", "kd.yaml"]]
)
def test_check_takes_recipes_as_fit_does(arguments: list[str], work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(arguments)
    assert "SoftTargets" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments", [["fit", "-c", "kd.yaml"], ["check", "kd.yaml"], ["fit", "-c", "kd.yaml", "-c", "base.yaml"]]
)
def test_a_part_alone_says_what_is_missing(
    arguments: list[str], work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(arguments)
    assert "'kd.yaml' is a part of a recipe and names no model" in capsys.readouterr().err


def test_a_typo_in_a_loss_names_the_right_word_once(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["fit", "-c", "base.yaml", "-c", "kd.yaml", "--model.knowledge.soft.loss.init_args.temprature=2"])
    assert "'temprature' (did you mean 'temperature'" in (said := capsys.readouterr().err)
    assert said.count("'temperature'") == 1


@pytest.mark.parametrize("by", ["recipe", "option", "two words"])
def test_a_named_data_set_keeps_its_own_defaults(work: Path, by: str) -> None:
    given = {"recipe": ["-c", "cifar.yaml"], "option": ["--data=kdlab.data.CIFAR100"]}
    given["two words"] = ["--data", "kdlab.data.CIFAR100"]
    (work / "cifar.yaml").write_text(yaml.safe_dump({"data": {"class_path": "kdlab.data.CIFAR100"}}))
    recipe = yaml.safe_load((work / "base.yaml").read_text())
    (work / "model.yaml").write_text(yaml.safe_dump({"model": recipe["model"]}))
    data: Any = build(["-c", "model.yaml", *given[by], *QUIET], run=False, save_config=False).datamodule
    assert isinstance(data, CIFAR100)
    assert (data.padding, data.flip, data.mean) == (4, True, CIFAR100().mean)


def test_digits_are_the_data_where_none_is_named(work: Path) -> None:
    recipe = yaml.safe_load((work / "base.yaml").read_text())
    (work / "model.yaml").write_text(yaml.safe_dump({"model": recipe["model"]}))
    (work / "views.yaml").write_text(yaml.safe_dump({"data": {"init_args": {"seed": 5}}}))
    given = ["-c", "model.yaml", "-c", "views.yaml", "--data.train_size=64", *QUIET]
    data: Any = build(given, run=False, save_config=False).datamodule
    assert isinstance(data, Digits)
    assert (data.train_size, data.seed) == (64, 5)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (["fit", "-c", "model.yaml"], ["fit", "--data=kdlab.data.Digits", "-c", "model.yaml"]),
        (["-c", "model.yaml"], ["--data=kdlab.data.Digits", "-c", "model.yaml"]),
        ([], ["--data=kdlab.data.Digits"]),
        (["fit", "-c", "base.yaml"], ["fit", "-c", "base.yaml"]),
        (["fit", "--config=data: my.Data\n"], ["fit", "--config=data: my.Data\n"]),
    ],
)
def test_digits_come_first_where_no_data_is_named(work: Path, given: list[str], wanted: list[str]) -> None:
    (work / "model.yaml").write_text("model: kdlab.Distiller\n")
    assert merge_configs(given) == wanted
