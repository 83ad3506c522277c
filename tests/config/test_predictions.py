"""predictions.csv: a row for each sample, for every kind of target, in the run's own folder."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.io import write_png

from kdlab.cli import main
from kdlab.config.predictions import sample_rows
from kdlab.outputs.task_format import task_format
from tests.config.test_lightning_cli import work  # noqa: F401

THIRD, HALF = math.log(3), 0.0
"""Logits of probabilities 3/4 against 1/4, and of 1/2."""


def rows(task: nn.Module, student: Any, teacher: Any, target: Any, names: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    logits = torch.tensor(student)
    form = task_format(task, logits, target)
    return sample_rows(form, logits, None if teacher is None else torch.tensor(teacher), target, None, names)


def test_rows_of_classes() -> None:
    task, target = nn.CrossEntropyLoss(), torch.tensor([1, 0, -100])
    student, teacher = [[HALF, THIRD]] * 3, [[HALF, THIRD], [THIRD, HALF], [HALF, THIRD]]
    first, second, unlabeled = rows(task, student, teacher, target, ("cat", "dog"))
    assert first == {
        "label": 1,
        "label_name": "dog",
        "class": 1,
        "class_name": "dog",
        "confidence": 0.75,
        "teacher_class": 1,
        "teacher_class_name": "dog",
        "teacher_confidence": 0.75,
        "correct": 1,
        "teacher_correct": 1,
    }
    assert (second["correct"], second["teacher_correct"], second["teacher_class_name"]) == (0, 1, "cat")
    assert (unlabeled["label"], unlabeled["label_name"], unlabeled["correct"]) == ("", "", "")
    (alone,) = rows(task, [[THIRD, HALF]], None, None)
    assert alone == {"label": "", "class": 0, "confidence": 0.75, "correct": ""}


def test_rows_of_binary_and_several_labels() -> None:
    task, target = nn.BCEWithLogitsLoss(), torch.tensor([[0.0], [1.0]])
    first, second = rows(task, [[-THIRD], [-THIRD]], None, target)
    assert first == {"label": 0, "class": 0, "confidence": 0.75, "correct": 1}
    assert (second["label"], second["correct"]) == (1, 0)
    (several,) = rows(task, [[THIRD, -THIRD, THIRD]], [[THIRD] * 3], torch.tensor([[1.0, 0.0, 1.0]]), ("a", "b", "c"))
    assert (several["labels"], several["classes"], several["teacher_classes"]) == ("0 2", "0 2", "0 1 2")
    assert (several["correct"], several["probability_b"], several["teacher_probability_b"]) == (1, 0.25, 0.75)


def test_rows_of_regression_and_of_pixels() -> None:
    (one,) = rows(nn.MSELoss(), [[1.0, 2.0]], [[1.0, 5.0]], torch.tensor([[1.0, 4.0]]))
    assert one == {
        "target_0": 1.0,
        "target_1": 4.0,
        "output_0": 1.0,
        "output_1": 2.0,
        "teacher_output_0": 1.0,
        "teacher_output_1": 5.0,
        "squared_error": 2.0,
        "teacher_squared_error": 0.5,
    }
    student = [[[THIRD, HALF, THIRD], [HALF, THIRD, HALF]]]  # (1, 2 classes, 3 pixels): classes 0, 1, 0
    teacher = [[[THIRD, THIRD, THIRD], [HALF, HALF, HALF]]]
    (pixels,) = rows(nn.CrossEntropyLoss(), student, teacher, torch.tensor([[0, 1, -100]]))
    assert pixels == {
        "positions": 2,
        "accuracy": 1.0,
        "confidence": 0.75,
        "teacher_accuracy": 0.5,
        "teacher_confidence": 0.75,
        "agreement": 0.5,
    }


@pytest.mark.full
@pytest.mark.filterwarnings("ignore:After normalization")
def test_predictions_name_files_in_the_runs_own_folder(work: Path) -> None:  # noqa: F811
    for split, count in (("train", 8), ("test", 3)):
        for label, name in enumerate(("cat", "dog")):
            (folder := work / "pets" / split / name).mkdir(parents=True)
            for number in range(count):
                write_png(torch.full((3, 8, 8), 200 * label + number, dtype=torch.uint8), str(folder / f"{number}.png"))
    net = "{class_path: kdlab.models.mlp, init_args: {in_features: 192, hidden: [8], num_classes: 2}}"
    (work / "pets.yaml").write_text(
        f"trainer: {{max_epochs: 2, accelerator: cpu, enable_progress_bar: false, log_every_n_steps: 1}}\n"
        f"model: {{class_path: kdlab.Distiller, init_args: {{student: {net}, teacher: {net}}}}}\n"
        "data: {class_path: kdlab.data.ImageFolder, init_args: {root: pets, batch_size: 8}}\n"
    )
    main(["fit", "-c", "pets.yaml"])
    main(["predict", "-c", "runs/version_0/config.yaml", "--ckpt_path=runs/version_0/checkpoints/last.ckpt"])
    assert [path.name for path in (work / "runs").iterdir()] == ["version_0"]
    with (work / "runs/version_0/predictions.csv").open() as file:
        written = list(csv.DictReader(file))
    assert [row["file"] for row in written] == [f"{name}/{number}.png" for name in ("cat", "dog") for number in "012"]
    assert [row["label_name"] for row in written] == ["cat"] * 3 + ["dog"] * 3
    assert all(row["correct"] == str(int(row["label"] == row["class"])) for row in written)
    assert {"sample", "class_name", "teacher_class_name", "teacher_confidence"} <= written[0].keys()
    checkpoint = "--ckpt_path=runs/version_0/checkpoints/last.ckpt"
    main(["predict", "-c", "pets.yaml", checkpoint, "--trainer.logger.init_args.version=mine"])
    assert (work / "runs/mine/predictions.csv").exists()
