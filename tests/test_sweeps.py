"""The sweeps for Weights & Biases are commands that kdlab understands, and choose by held-out images."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from kdlab.studies.preflight import resolve

ROOT = Path(__file__).parents[1]
SWEEPS = sorted((ROOT / "configs/sweeps").glob("*.yaml"))


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_a_sweeps_command_with_its_arguments_is_a_run(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    sweep = yaml.safe_load(path.read_text())
    assert sweep["command"][:3] == ["${env}", "kdlab", "fit"]
    assert sweep["metric"] == {"name": "val/student_accuracy", "goal": "maximize"}
    # What the agent puts in place of ${args}
    chosen = {name: said.get("min", said.get("values", [None])[0]) for name, said in sweep["parameters"].items()}
    arguments = [each for each in sweep["command"][3:] if each != "${args}"]
    plain = resolve(arguments)
    config = resolve([*arguments, *(f"--{name}={value}" for name, value in chosen.items())])
    assert config["data"]["init_args"]["validation"] > 0
    assert any(logger["class_path"].endswith("WandbLogger") for logger in config["trainer"]["logger"])
    options = config["model"]["init_args"]
    assert options["knowledge"]["kd"]["weight"] == chosen["model.knowledge.kd.weight"] == 0.1
    assert plain["model"]["init_args"]["knowledge"]["kd"]["weight"] == 0.9


@pytest.mark.full
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_wandb_accepts_it(path: Path) -> None:
    from wandb.sdk.launch.sweeps.utils import load_sweep_config

    assert load_sweep_config(str(path))
