"""From a flat folder of JPEGs without labels to a student that timm loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from kdlab.cli import main

timm = pytest.importorskip("timm")
QUIET = ["--trainer.logger=false", "--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu"]


def photos(path: Path, classes: bool = False) -> Path:
    generator = np.random.default_rng(0)
    for number in range(16):
        place = path / (f"{'val' if number > 11 else 'train'}/{'ab'[number % 2]}" if classes else "")
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (40, 50, 3), np.uint8)).save(place / f"{number}.jpg")
    return path


@pytest.mark.nightly
def test_recipe_trains_on_a_flat_folder_and_timm_loads_the_student(
    tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    photos(tmp_path / "photos")
    options = ["-c", "label_free/distill", "--data.root=photos", "--data.size=64", "--data.batch_size=8"]
    networks = ["--model.student=timm:resnet10t", "--model.teacher=timm:vit_tiny_patch16_224"]
    rest = [
        "--trainer.log_every_n_steps=1",
        "--model.teacher.pretrained=false",
        "--data.num_workers=0",
        "--trainer.max_epochs=1",
    ]
    main(["fit", *options, *networks, *rest, *QUIET[1:]])
    main(["export", "runs/version_0"])
    student = timm.create_model("resnet10t", num_classes=0)
    tensors = load_file("runs/version_0/student.safetensors")
    student.load_state_dict(tensors, strict=True)
    assert student(torch.zeros(1, 3, 64, 64)).shape == (1, 512)
    photos(tmp_path / "labeled", classes=True)
    capsys.readouterr()
    other = ["--data=kdlab.data.ImageFolder", "--data.root=labeled", "--data.size=64"]
    main(
        ["evaluate", "runs/version_0", *other, "--few-labels=0.5", "--corruptions", "--out=table.csv", "--neighbors=2"]
    )
    table = (tmp_path / "table.csv").read_text()
    for word in ("knn,", "linear,", "teacher_cka,", '"fine-tuned, 50% of labels"', '"knn, jpeg 3"'):
        assert word in table


@pytest.mark.full
def test_layers_say_what_the_embedding_is(capsys: Any) -> None:
    main(["layers", "timm:resnet10t", "--input=3,64,64", "--depth=1"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "It has no classifier: its output, 512, is its embedding." in shown
    assert "'features:map' is 512 x 2 x 2" in shown
    main(["layers", "timm:resnet10t", "--num_classes=7", "--input=3,64,64", "--depth=1"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "Its embedding, 512, is the input of its classifier 'fc'." in shown
