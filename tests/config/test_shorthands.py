"""Networks in one word."""

from __future__ import annotations

import pytest

from kdlab.config.shorthands import expanded, expanded_options

TIMM = {"class_path": "kdlab.models.timm_model", "init_args": {"name": "vit_tiny"}}


def test_options_are_written_out() -> None:
    options = ["fit", "--model.teacher=timm:vit_tiny", "--model.init_args.student=torchvision:resnet18"]
    assert expanded_options([*options, "--model.teacher.dino=hf:folder/of:it", "--data.root=timm:x"]) == [
        "fit",
        "--model.teacher=kdlab.models.timm_model",
        "--model.teacher.name=vit_tiny",
        "--model.init_args.student=torchvision.models.resnet18",
        "--model.teacher.dino=kdlab.models.hugging_face",
        "--model.teacher.dino.path=folder/of:it",
        "--model.teacher.dino.task=features",
        "--data.root=timm:x",
    ]


@pytest.mark.parametrize("teacher", ["timm:vit_tiny", ["timm:vit_tiny"], {"dino": "timm:vit_tiny"}])
def test_configs_are_written_out(teacher: object) -> None:
    config = {
        "model": {"init_args": {"teacher": teacher, "deploy": "timm:vit_tiny"}},
        "data": {"root": "timm:vit_tiny"},
    }
    model = expanded(config)["model"]["init_args"]
    made = model["teacher"]
    assert [made, *(made if isinstance(made, list) else made.values())].count(TIMM) == 1
    assert model["deploy"] == "timm:vit_tiny"
    assert expanded(config)["data"] == config["data"]


def test_networks_inside_networks_are_written_out() -> None:
    frozen = {"class_path": "kdlab.members.Frozen", "init_args": {"network": "timm:vit_tiny"}}
    assert expanded({"teacher": frozen})["teacher"]["init_args"]["network"] == TIMM
