"""Texts of jsonargparse as input errors: which key and which value are wrong."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
import yaml

from kdlab.config.lightning_cli import QUIET, build, resolve
from kdlab.config.parser_errors import _wrong_part
from kdlab.errors import InputError
from tests.config.test_lightning_cli import RECIPE

KNOWN = ("model", "trainer", "knowledge", "loss", "weight", "temperature", "max_epochs")


@pytest.mark.parametrize(
    ("key", "wrong"),
    [
        ("modle.knowledge.mine.wieght", "modle"),
        ("model.knowlege.mine.loss", "knowlege"),
        ("knowledge.mine.wieght", "wieght"),  # the name of a knowledge is free
        ("knowledge.mine.loss.temprature", "temprature"),
        ("trainer.temperature", "temperature"),  # right elsewhere
        ("wieght", "wieght"),
    ],
)
def test_the_first_part_that_is_no_name_is_wrong(key: str, wrong: str) -> None:
    assert _wrong_part(key, KNOWN) == wrong


@pytest.mark.parametrize(
    ("option", "key", "value"),
    [
        ("--trainer.epochs=1", "trainer.epochs", ""),
        ("--model.knowledge.soft.wieght=1", "wieght", ""),
        ("--trainer.max_epochs=many", "trainer.max_epochs", "many"),
        ("--model.knowledge.soft.weight=much", "model.knowledge.soft.weight", "much"),
        ("--model.student.hidden=64", "model.student.hidden", "64"),
        ("--model=kdlab.Distillr", "", "kdlab.Distillr"),
        ("--model.knowledge.soft.loss=my_los.A", "model.knowledge.soft.loss", "my_los"),
        ("--model.knowledge.soft.loss=torch.optim.SGD", "model.knowledge.soft.loss", "torch.optim.SGD"),
    ],
)
def test_an_error_has_the_key_and_the_value(option: str, key: str, value: str, tmp_path: Path) -> None:
    recipe = yaml.safe_load(yaml.safe_dump(RECIPE))
    del recipe["model"]["init_args"]["knowledge"]["mine"]
    (tmp_path / "kd.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.raises(InputError) as raised:
        resolve([f"--config={tmp_path / 'kd.yaml'}", option])
    assert (raised.value.key.endswith(key), raised.value.value) == (True, value)
    assert bool(raised.value.key) == bool(key)


NETWORK = {"class_path": "torchvision.models.squeezenet1_1", "init_args": {"num_classes": 10}}


@pytest.mark.parametrize("written", ["config", "options"])
def test_a_file_for_named_weights_is_answered_with_a_line_to_paste(
    written: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    network = torchvision.models.squeezenet1_1(num_classes=10)
    torch.save(network.state_dict(), "my.pth")
    recipe = yaml.safe_load(yaml.safe_dump(RECIPE))
    recipe["model"]["init_args"] = {"student": NETWORK}
    options = ["--model.teacher=torchvision.models.squeezenet1_1", "--model.teacher.num_classes=10"]
    if written == "config":
        recipe["model"]["init_args"]["teacher"] = {**NETWORK, "init_args": {"num_classes": 10, "weights": "my.pth"}}
        options = []
    Path("kd.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.raises(InputError, match=r"IMAGENET1K_V1, DEFAULT\), not a file\. Write ") as raised:
        resolve(["-c", "kd.yaml", *options, *(["--model.teacher.weights=my.pth"] if options else [])])
    line = str(raised.value).partition(" Write ")[2]
    if written == "config":
        recipe["model"]["init_args"] |= yaml.safe_load(line)
        Path("kd.yaml").write_text(yaml.safe_dump(recipe))
    built = build(["-c", "kd.yaml", *QUIET, *(shlex.split(line) if options else [])], run=False, save_config=False)
    loaded, wanted = built.model.teacher.networks[0].state_dict(), network.state_dict()
    assert loaded.keys() == wanted.keys()
    assert all(torch.equal(loaded[name], wanted[name]) for name in wanted)


NEEDY = """
from torch import nn


class Scaled(nn.Module):
    def __init__(self, scale: float) -> None:
        super().__init__()
"""


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"loss": "needy.Scaled"}, "knowledge.mine.loss: needy.Scaled needs scale."),
        ({"loss": "kdlab.losses.SoftTargets", "weight": "much"}, "knowledge.mine.weight: expected a number"),
    ],
)
@pytest.mark.parametrize("written", ["config", "options"])
def test_an_error_names_the_knowledge(
    change: Any, said: str, written: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "needy.py").write_text(NEEDY)
    recipe = yaml.safe_load(yaml.safe_dump(RECIPE))
    knowledge = recipe["model"]["init_args"]["knowledge"]
    del knowledge["mine"]
    options = [f"--model.knowledge.mine.{name}={value}" for name, value in change.items()]
    if written == "config":
        knowledge["mine"] = change
        options = []
    (tmp_path / "kd.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.raises(InputError) as raised:
        resolve([f"--config={tmp_path / 'kd.yaml'}", *options])
    assert said in str(raised.value)
