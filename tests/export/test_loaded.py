"""An exported student is what was trained, to the bit, as a teacher in the next config."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
import yaml
from torch import nn
from torchvision.models import _api

from kdlab import Distiller
from kdlab.cli import main
from kdlab.config.lightning_cli import build
from kdlab.export.student import loaded
from tests.tiers import tiered

MINE = """\
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Net(nn.Module):
    def __init__(self, width: int = 4, weights: str | None = None):
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.Linear(width, 10)
        if weights:
            self.load_state_dict(torch.load(weights))

    def forward(self, x):
        return self.fc(self.norm(self.conv(x)).mean((2, 3)))


class Noise(pl.LightningDataModule):
    def loader(self):
        generator = torch.Generator().manual_seed(0)
        return DataLoader(TensorDataset(torch.randn(4, 3, 32, 32, generator=generator), torch.arange(4)), 4)

    train_dataloader = val_dataloader = loader
"""
SILENT = {"accelerator": "cpu", "max_steps": 1, "enable_progress_bar": False, "enable_model_summary": False}
SILENT |= {"log_every_n_steps": 1, "limit_val_batches": 0}


def net(path: str, **options: Any) -> dict[str, Any]:
    return {"class_path": path, "init_args": options}


TORCHVISION = net("torchvision.models.squeezenet1_1", num_classes=10)
WRAPPED = net("kdlab.models.with_weights", network=net("my.Net"), weights="start.pt", prefix="")
KINDS = {
    "torchvision": TORCHVISION,
    "torchvision, downloaded": net("torchvision.models.squeezenet1_1", weights="IMAGENET1K_V1"),
    "wrapped": WRAPPED,
    "changed": net("kdlab.models.without_bias", network=WRAPPED),
    "timm": net("kdlab.models.timm_model", name="test_resnet", num_classes=10),
    "timm's own": {**net("timm.create_model", model_name="test_resnet"), "dict_kwargs": {"num_classes": 10}},
    "kdlab": net("kdlab.models.resnet8", num_classes=10),
    "user's file": net("my.Net", width=5),
    "user's file with weights": net("my.Net", weights="start.pt"),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my", raising=False)  # of the test before
    (tmp_path / "my.py").write_text(MINE)
    layers = nn.ModuleDict({"conv": nn.Conv2d(3, 4, 3), "norm": nn.BatchNorm2d(4), "fc": nn.Linear(4, 10)})
    torch.save(layers.state_dict(), tmp_path / "start.pt")
    return tmp_path


@pytest.mark.parametrize("kind", tiered(KINDS, ["torchvision", "wrapped"]))
def test_an_exported_network_is_a_teacher_to_the_bit(kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "downloaded" in kind:
        states = [torchvision.models.squeezenet1_1().state_dict()]  # a second download fails
        monkeypatch.setattr(_api, "load_state_dict_from_url", lambda *_, **__: states.pop())
    student = KINDS[kind]
    recipe = {"model": net("kdlab.Distiller", student=student), "data": {"class_path": "my.Noise"}, "trainer": SILENT}
    (folder / "plain.yaml").write_text(yaml.safe_dump(recipe))
    trained = build(["fit", "-c", "plain.yaml"]).model
    assert isinstance(trained, Distiller)
    main(["export", "runs/version_0", "--out", "shipped"])

    monkeypatch.chdir(folder / "shipped")  # the files that the network began with are out of reach
    taught = [f"--{key}={value}" for key, value in (("model", "kdlab.Distiller"), ("model.teacher", "student.yaml"))]
    further = ["--model.student=kdlab.models.mlp", "--data=my.Noise"]
    if kind == "user's file with weights":  # its constructor reads them whatever is loaded afterwards
        monkeypatch.chdir(folder)
        taught[-1] = "--model.teacher=shipped/student.yaml"
    module = build([*taught, *further], run=False, save_config=False).model
    assert isinstance(module, Distiller)
    assert module.teacher is not None
    (teacher,) = module.teacher.networks
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(teacher(images), trained.student.eval()(images))


def test_weights_that_shape_a_network_stay_in_its_config(tmp_path: Path) -> None:
    def inner(path: str, weights: str) -> Any:
        return loaded(net(path, weights=weights), tmp_path / "w")["init_args"]["network"]["init_args"]["weights"]

    assert inner("torchvision.models.resnet18", "IMAGENET1K_V1") is None
    assert inner("torchvision.models.googlenet", "IMAGENET1K_V1") == "IMAGENET1K_V1"
    assert inner("torchvision.models.vit_b_16", "IMAGENET1K_SWAG_E2E_V1") == "IMAGENET1K_SWAG_E2E_V1"
    assert inner("torchvision.models.segmentation.fcn_resnet50", "DEFAULT") == "DEFAULT"
    assert inner("my.Net", "start.pt") == "start.pt"


@pytest.mark.nightly
def test_weights_shape_only_the_networks_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every classifier of torchvision built with each of its weights, without their values, and without any."""
    monkeypatch.setattr(_api.WeightsEnum, "get_state_dict", lambda *_, **__: {})
    monkeypatch.setattr(nn.Module, "load_state_dict", lambda *_, **__: None)
    regnets = "regnet"  # they compute with their weights while they are built, which takes memory for them

    def described(network: nn.Module) -> Any:
        plain = (bool, int, float, str, tuple, type(None))
        values = {
            (name, key): value
            for name, module in network.named_modules()
            for key, value in vars(module).items()
            if isinstance(value, plain)
        }
        return repr(network), {name: value.shape for name, value in network.state_dict().items()}, values

    changed = set()
    for name in torchvision.models.list_models(module=torchvision.models):
        for weights in () if name.startswith(regnets) else torchvision.models.get_model_weights(name):
            with torch.device("meta"):
                build_one = torchvision.models.get_model_builder(name)
                if described(build_one(weights=weights)) != described(build_one()):
                    changed.add((name, weights.name))
    path = "torchvision.models."
    kept = [loaded(net(path + name, weights=weights), Path("w"))["init_args"]["network"] for name, weights in changed]
    assert len(changed) > 2
    assert all(network["init_args"]["weights"] for network in kept)
