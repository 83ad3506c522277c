"""Co-training from the command line: fit, and export of what is deployed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from kdlab.cli import main
from kdlab.models import mlp, resnet8
from kdlab.models.weights import load_weights

pytestmark = pytest.mark.full

DIGITS = {"class_path": "kdlab.data.Digits", "init_args": {"batch_size": 32, "train_size": 96}}
SOFT = {"soft": {"loss": {"class_path": "kdlab.losses.SoftTargets", "init_args": {"temperature": 1.0}}, "weight": 1.0}}


def net(width: int) -> dict[str, Any]:
    return {"class_path": "kdlab.models.mlp", "init_args": {"in_features": 64, "hidden": [width], "num_classes": 10}}


def config(path: Path, **model: Any) -> Path:
    trainer = {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False, "log_every_n_steps": 1}
    content = {
        "seed_everything": 3,
        "trainer": {**trainer, "default_root_dir": str(path.parent)},
        "model": {"class_path": "kdlab.CoTrainer", "init_args": {"knowledge": SOFT, **model}},
        "data": DIGITS,
    }
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_of(here: Path) -> Path:
    (checkpoint,) = here.rglob("*.ckpt")
    return checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint.parent


@pytest.mark.parametrize(("deploy", "width"), [("big", 24), ("small", 8)])
def test_the_deployed_peer_is_exported(here: Path, deploy: str, width: int) -> None:
    path = config(here / "dml.yaml", networks={"big": net(24), "small": net(8)}, deploy=deploy)
    assert main(["fit", "-c", str(path)]) in (0, None)
    run = run_of(here)
    assert main(["export", str(run)]) in (0, None)
    exported = load_weights(mlp(64, [width], 10), str(run / "student.safetensors"))
    assert sum(p.numel() for p in exported.parameters()) > 0
    said = yaml.safe_load((run / "student.yaml").read_text())
    assert said["init_args"]["hidden"] == [width]


def test_a_learner_of_an_ensemble_is_exported_by_its_name(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = config(here / "dml.yaml", networks={"big": net(24), "small": net(8)}, deploy="ensemble")
    main(["fit", "-c", str(path)])
    run = run_of(here)
    with pytest.raises(SystemExit):
        main(["export", str(run)])
    assert "name one with --learner: 'big', 'small'." in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["export", str(run), "--learner", "smal"])
    assert "has no learner 'smal'; it has 'big', 'small'." in capsys.readouterr().err
    main(["export", str(run), "--learner", "small"])
    exported = load_weights(mlp(64, [8], 10), str(run / "student.safetensors"))
    kept = torch.load(next(run.rglob("last.ckpt")), weights_only=True)["state_dict"]
    assert all(torch.equal(value, kept[f"networks.small.{name}"]) for name, value in exported.state_dict().items())
    assert yaml.safe_load((run / "student.yaml").read_text())["init_args"]["hidden"] == [8]


def test_a_branch_of_a_network_is_exported_as_the_network(here: Path) -> None:
    inner = {"class_path": "kdlab.models.resnet8", "init_args": {"num_classes": 10, "in_channels": 1}}
    whole = {"class_path": "kdlab.models.Branched", "init_args": {"network": inner, "fork": "layer3", "branches": 2}}
    teaching = {"class_path": "kdlab.teaching.Gated", "init_args": {"layer": "layer2"}}
    path = config(here / "one.yaml", networks={"net": whole}, teaching=teaching, deploy="net_branch1")
    assert main(["fit", "-c", str(path)]) in (0, None)
    run = run_of(here)
    assert main(["export", str(run)]) in (0, None)
    load_weights(resnet8(10, in_channels=1), str(run / "student.safetensors"))
    said = yaml.safe_load((run / "student.yaml").read_text())
    assert said["class_path"] == inner["class_path"]
    assert said["init_args"].items() >= {**inner["init_args"], "weights": str(run / "student.safetensors")}.items()


def test_the_average_is_exported(here: Path) -> None:
    teaching = {"class_path": "kdlab.teaching.MovingAverage", "init_args": {"decay": 0.5}}
    path = config(here / "ema.yaml", networks={"net": net(8)}, teaching=teaching, deploy="average_net")
    assert main(["fit", "-c", str(path)]) in (0, None)
    run = run_of(here)
    assert main(["export", str(run)]) in (0, None)
    (checkpoint,) = here.rglob("*.ckpt")
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    exported = load_weights(mlp(64, [8], 10), str(run / "student.safetensors")).state_dict()
    for name, value in exported.items():
        assert torch.equal(value, state[f"teaching.copies.networks.net.{name}"])
        assert not torch.equal(value, state[f"networks.net.{name}"])


def test_two_peers_made_by_one_config_start_apart(here: Path) -> None:
    path = config(here / "dml.yaml", networks={"a": net(8), "b": net(8)})
    assert main(["fit", "-c", str(path), "--trainer.max_steps=1"]) in (0, None)


def test_a_weight_is_changed_from_the_command_line(here: Path) -> None:
    path = config(here / "dml.yaml", networks={"a": net(8), "b": net(8)})
    arguments = ["--model.knowledge.soft.weight=0.25", "--model.networks.b.init_args.hidden=[12]"]
    assert main(["fit", "-c", str(path), *arguments]) in (0, None)
    saved = yaml.safe_load((run_of(here) / "config.yaml").read_text())["model"]["init_args"]
    assert saved["knowledge"]["soft"]["weight"] == 0.25
    assert saved["networks"]["b"]["init_args"]["hidden"] == [12]
    assert saved["networks"]["a"]["init_args"]["hidden"] == [8]
