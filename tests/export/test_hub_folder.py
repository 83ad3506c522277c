"""The folder for model hubs: what is in it, and that timm and plain PyTorch load it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from kdlab.errors import InputError
from kdlab.export.deployed import about
from kdlab.export.hub_folder import write_hub_folder
from kdlab.models import mlp, timm_model

RECIPE = {
    "model": {
        "init_args": {
            "teacher": {"class_path": "kdlab.models.resnet56"},
            "knowledge": {"kd": {"loss": {"class_path": "kdlab.losses.SoftTargets"}}},
        }
    },
    "data": {"class_path": "kdlab.data.CIFAR10"},
}
SCORES = {"accuracy": 0.8, "teacher_accuracy": 0.9, "retention": 0.8889, "agreement": 0.85, "ece": 0.02}


def write(folder: Path, network: nn.Module, config: dict[str, Any], shape: list[int]) -> None:
    preprocessing = {"shape": shape, "scale": 1 / 255, "mean": [0.5] * shape[0], "std": [0.25] * shape[0]}
    metadata = {**about(network, preprocessing, ["cat", "dog"]), "parameters": 10_000, "flops": 2_000_000}
    write_hub_folder(folder, network, config, metadata, SCORES, RECIPE, "apache-2.0")


def test_plain_pytorch_loads_it_and_the_card_says_what_was_measured(tmp_path: Path) -> None:
    network = mlp(4, [3], 2)
    options = {"in_features": 4, "hidden": [3], "num_classes": 2}
    config = {
        "class_path": "kdlab.models.fake_quantized",
        "init_args": {"network": {"class_path": "kdlab.models.mlp", "init_args": options}},
    }
    write(tmp_path / "hub", network, config, [1, 2, 2])
    loaded = load_file(tmp_path / "hub/model.safetensors")
    assert all(torch.equal(loaded[name], value) for name, value in network.state_dict().items())
    written = json.loads((tmp_path / "hub/config.json").read_text())
    assert (written["class_path"], written["init_args"]) == ("kdlab.models.mlp", options)
    assert written["id2label"] == {"0": "cat", "1": "dog"}
    assert json.loads((tmp_path / "hub/preprocessor_config.json").read_text())["image_std"] == [0.25]
    card = (tmp_path / "hub/README.md").read_text()
    for words in (
        "license: apache-2.0",
        "`mlp`, distilled from resnet56 on CIFAR10 with kdlab (SoftTargets).",
        "| accuracy | 80.00 % |",
        "| accuracy of the teacher | 90.00 % |",
        "| share of the teacher's accuracy | 88.89 % |",
        "| size | 0.04 MB |",
        "network = mlp(in_features=4, hidden=[3], num_classes=2)",
    ):
        assert words in card
    with pytest.raises(InputError, match="is not empty"):
        write(tmp_path / "hub", network, config, [1, 2, 2])


@pytest.mark.full
def test_timm_loads_it(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    options = {"name": "resnet10t", "num_classes": 2}
    network = timm_model(**options).eval()
    write(tmp_path / "hub", network, {"class_path": "kdlab.models.timm_model", "init_args": options}, [3, 64, 64])
    loaded = timm.create_model(f"local-dir:{tmp_path / 'hub'}", pretrained=True).eval()
    inputs = torch.rand(2, 3, 64, 64)
    assert torch.equal(loaded(inputs), network(inputs))
    assert loaded.pretrained_cfg["mean"] == [0.5] * 3
