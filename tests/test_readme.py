"""What the README shows runs: its Python, and every kdlab command in it."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from kdlab import losses
from kdlab.cli import COMMANDS, main
from kdlab.cli.methods import WAYS_HEADER, entries, markdown_table, ways
from kdlab.models import resnet14, save_weights

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", README, re.S)
SHELL = [
    line.removeprefix("$ ")
    for block in re.findall(r"```console\n(.*?)```", README, re.S)
    for line in block.splitlines()
]
KDLAB = [line for line in SHELL if line.startswith("kdlab ")]


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "my_loss.py").write_text(PYTHON[1])
    (tmp_path / "my_teaching.py").write_text(PYTHON[3])
    save_weights(resnet14(10, in_channels=1), tmp_path / "runs/demo/teacher.safetensors")  # as `kdlab demo` leaves it
    return tmp_path


def test_the_first_two_commands_are_demo_and_test() -> None:
    makefile = (ROOT / "Makefile").read_text()
    assert [line.split("#")[0].strip() for line in SHELL[:2]] == ["make demo", "make test"]
    assert "\ndemo: $(CORE)" in makefile  # no Ray, mypy or Jupyter
    assert "\ntest: $(DEV)" in makefile


@pytest.mark.filterwarnings("ignore::UserWarning")  # Lightning's advice on workers and log intervals
def test_python(work: Path) -> None:
    scope: dict[str, object] = {}
    exec(PYTHON[0].replace("max_epochs=10", "max_epochs=1, accelerator='cpu'"), scope)
    assert {"test/student_accuracy", "test/retention"} <= set(scope["trainer"].callback_metrics)  # type: ignore[attr-defined]


@pytest.mark.full
@pytest.mark.filterwarnings("ignore::UserWarning")  # as above
def test_python_of_networks_that_learn_together(work: Path) -> None:
    scope: dict[str, Any] = {}
    exec(PYTHON[2].replace("max_epochs=10", "max_epochs=1, accelerator='cpu'"), scope)
    assert {"test/a_accuracy", "test/ensemble_gain", "test/deployed_accuracy"} <= set(scope["trainer"].callback_metrics)
    assert type(scope["one"].deployed()).__name__ == "ResNet"
    averaged = scope["averaged"]
    assert averaged.deployed() is averaged.plan.networks_of("average_net")[0][0]


def test_a_teaching_of_your_own_has_at_most_15_lines() -> None:
    assert len(PYTHON[3].strip().splitlines()) <= 15


def test_a_loss_of_your_own_has_at_most_15_lines() -> None:
    assert len(PYTHON[1].strip().splitlines()) <= 15
    assert "import kdlab" not in PYTHON[1]


@pytest.mark.parametrize("line", KDLAB)
def test_command(line: str, work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = shlex.split(line, comments=True)[1:]
    assert words[0] in COMMANDS
    assert all((work / word).exists() for word in words if word.startswith("configs/"))
    real = "cifar100" in line or "configs/recipes/" in line  # needs CIFAR-100; see test_configs.py
    if words[0] in ("fit", "check") and not real:  # as far as the first step
        main(["check", *(word for word in words[1:] if word not in ("-c", "--trainer.devices=2"))])
        assert "Loss terms" in capsys.readouterr().out
    elif words[0] == "layers":
        main(words)
        assert "layer3" in capsys.readouterr().out


def test_the_table_of_methods_is_what_the_code_says() -> None:
    shown = README.partition("<!-- methods -->\n")[2].partition("<!-- /methods -->")[0].strip()
    assert shown == markdown_table(entries()).strip(), "put the output of `kdlab methods --markdown` into README.md"


def test_the_table_of_ways_to_learn_together_is_what_the_code_says() -> None:
    shown = README.partition("<!-- ways -->\n")[2].partition("<!-- /ways -->")[0].strip()
    said = "put the output of `kdlab methods --family teaching --markdown` into README.md"
    assert shown == markdown_table(ways(), WAYS_HEADER).strip(), said


def test_every_loss_has_a_config_with_its_own_weight() -> None:
    weights: dict[str, set[float]] = {}
    for path in (*(ROOT / "configs/knowledge").glob("*.yaml"), *(ROOT / "configs/recipes").glob("*.yaml")):
        model = yaml.safe_load(path.read_text()).get("model", {"init_args": {}})
        for each in model["init_args"].get("knowledge", {}).values():
            kinds = re.findall(r"kdlab\.losses\.(\w+)", str(each["loss"]))
            for kind in kinds:
                weights.setdefault(kind, set()).add(float(each.get("weight", 1)))
    for name in losses.__all__:
        assert name in weights, f"{name} has no config"
        assert getattr(losses, name).recipe_weight in weights[name], (name, weights[name])
