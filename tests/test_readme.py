"""README: its size, its order, and its examples as far as the first step; test_docs_run.py runs all of it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from kdlab import losses
from kdlab.cli import main
from kdlab.cli.methods import entries, ways
from kdlab.models import resnet14, save_weights
from tests.documentation import ROOT, Page

PAGE = Page(ROOT / "README.md")
PYTHON, LOSS = (block for block in PAGE.blocks if block.language == "python")
COMMANDS = [command for block in PAGE.blocks if block.language == "console" for command in block.commands]


def test_the_first_two_commands_are_demo_and_test() -> None:
    assert COMMANDS[:2] == ["make demo", "make test"]
    assert COMMANDS[2].startswith("source .venv/bin/activate")
    makefile = (ROOT / "Makefile").read_text()
    assert "\ndemo: $(CORE)" in makefile  # no Ray, mypy or Jupyter
    assert "\ntest: $(DEV)" in makefile


def test_readme_is_short() -> None:
    assert len(PAGE.text.splitlines()) <= 125
    assert len([line for line in PYTHON.code.splitlines() if line]) <= 12
    assert len(LOSS.code.strip().splitlines()) <= 11
    assert "kdlab" not in LOSS.code


def test_readme_has_as_many_methods_as_it_says() -> None:
    stated = re.search(r"more than (\d+) methods and (\d+) ways to teach", PAGE.text)
    assert stated
    assert len(entries()) > int(stated[1])
    assert len({row[0] for row in ways()}) > int(stated[2])


def test_measured_numbers_are_those_of_the_experiments() -> None:
    numbers = [line for line in PAGE.text.splitlines() if line.startswith("| [")]
    for line in numbers:
        path, values = re.search(r"\]\((.*?)\)", line), re.findall(r"\d+\.\d+(?: ± \d+\.\d+)?", line.partition(")")[2])
        assert path
        assert values
        assert all(value in (ROOT / path[1]).read_text() for value in values), line


@pytest.mark.filterwarnings("ignore::UserWarning")  # Lightning's advice on workers and log intervals
def test_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    scope: dict[str, object] = {}
    exec(PYTHON.code.replace("max_epochs=10", "max_epochs=1, limit_train_batches=2, accelerator='cpu'"), scope)
    assert {"val/student_accuracy", "val/retention"} <= set(scope["trainer"].callback_metrics)  # type: ignore[attr-defined]


def test_recipe_and_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    save_weights(resnet14(10, in_channels=1), tmp_path / "runs/demo/teacher.safetensors")  # as `kdlab demo` leaves it
    for block in PAGE.blocks:
        if block.title:
            (tmp_path / block.title).write_text(block.code)
    command = next(command for command in COMMANDS if "my_loss" in command)
    main(command.split()[1:])
    printed = capsys.readouterr().out
    assert all(term in printed for term in ("Loss terms", "soft", "hint", "mine"))


def test_every_loss_has_a_config_with_its_own_weight() -> None:
    weights: dict[str, set[float]] = {}
    folders = ("knowledge", "knowledge/text", "recipes")
    for path in (path for folder in folders for path in (ROOT / "configs" / folder).glob("*.yaml")):
        model = yaml.safe_load(path.read_text()).get("model", {"init_args": {}})
        for each in model["init_args"].get("knowledge", {}).values():
            kinds = re.findall(r"kdlab\.losses\.(\w+)", str(each["loss"]))
            for kind in kinds:
                weights.setdefault(kind, set()).add(float(each.get("weight", 1)))
    for name in losses.__all__:
        assert name in weights, f"{name} has no config"
        assert getattr(losses, name).recipe_weight in weights[name], (name, weights[name])
