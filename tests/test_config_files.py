"""Every file of ``configs/`` resolves: each key, class path and argument in it exists and has the right type."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdlab.cli import main
from kdlab.studies.preflight import resolve
from tests.config_files import CONFIGS, IMAGENET, KNOWLEDGE, RECIPES, layers, names
from tests.tiers import tiered

DISTIL = [CONFIGS / "cifar100/distil.yaml"]
TEXT = [CONFIGS / "text/distill_sst2.yaml"]
PARTS = ("trainer/gpu", "teacher/cache", "teacher/torchvision", "student/quantization_aware", "logger/wandb")
LAYERS = {
    **{name: [CONFIGS / f"{name}.yaml"] for name in ("kd_digits", "dml_digits", "cifar100/train")},
    "label_free/distill": [CONFIGS / "label_free/distill.yaml"],
    **{f"text/{name}": [CONFIGS / f"text/{name}.yaml"] for name in names("text")},
    **{f"recipes/base/{name}": [CONFIGS / f"recipes/base/{name}.yaml"] for name in ("self", "online")},
    **{f"recipes/{name}": layers(name) for name in RECIPES},
    **{f"knowledge/{name}": [*DISTIL, CONFIGS / f"knowledge/{name}.yaml"] for name in KNOWLEDGE},
    **{
        f"knowledge/imagenet/{name}": [CONFIGS / "imagenet/distil.yaml", CONFIGS / f"knowledge/imagenet/{name}.yaml"]
        for name in IMAGENET
    },
    **{f"knowledge/text/{name}": [*TEXT, CONFIGS / f"knowledge/text/{name}.yaml"] for name in names("knowledge/text")},
    **{name: [*DISTIL, CONFIGS / f"{name}.yaml"] for name in PARTS},
}
QUICK = (
    "kd_digits",
    "recipes/knowledge_transfer_graph",
    "knowledge/kd",
    *PARTS,
)


@pytest.mark.parametrize("name", tiered(LAYERS, QUICK))
def test_config_resolves(name: str) -> None:
    resolve([f"--config={path}" for path in LAYERS[name]])


def test_every_config_is_resolved() -> None:
    shipped = {path for path in CONFIGS.rglob("*.yaml") if path.parent.name != "sweeps"}
    assert {path for layers in LAYERS.values() for path in layers} == shipped


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_names_its_own_command(recipe: str) -> None:
    assert layers(recipe)[-1] == CONFIGS / f"recipes/{recipe}.yaml"


@pytest.mark.full
def test_a_printed_config_prints_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed, config = [], CONFIGS / "kd_digits.yaml"
    for option in ("--model.teacher.weights=teacher.safetensors", "--seed_everything=0"):
        with pytest.raises(SystemExit) as ended:
            main(["fit", "-c", str(config), option, "--print_config"])
        assert ended.value.code == 0
        printed.append(capsys.readouterr().out)
        config = tmp_path / "printed.yaml"
        config.write_text(printed[-1])
    assert "weights: teacher.safetensors" in printed[0]
    assert printed[0] == printed[1]
