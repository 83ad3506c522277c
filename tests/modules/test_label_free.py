"""Distillation of backbones without labels: several teachers, each with its own preprocessing, live and cached."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from kdlab import Distiller, Knowledge
from kdlab.data import ImageFolder, Preprocessing, UnlabeledImages
from kdlab.data.augment import normalize
from kdlab.errors import InputError
from kdlab.losses import CosineSmoothL1, QueueSimilarity, Standardized
from kdlab.members import Frozen, Stored
from kdlab.teaching import MeanOfLogits, TeacherCache
from tests.modules.tiny import count_calls, digits, network, same, sgd, trainer, weights

ONE = Preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
OTHER = Preprocessing((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), size=12)


def folder(path: Path, count: int = 24, classes: bool = False) -> Path:
    generator = np.random.default_rng(0)
    for number in range(count):
        place = path / (f"train/{'ab'[number % 2]}" if classes else "") / f"{number:02d}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (8, 8, 3), np.uint8)).save(place)
    return path


def images(path: Path, **options: Any) -> UnlabeledImages:
    """Two batches of 12 an epoch, shifted and flipped, two views."""
    options = {"batch_size": 12, "padding": 1, "distinct_epochs": 2, **options}
    return UnlabeledImages(str(folder(path)), [0.4, 0.5, 0.6], [0.2, 0.25, 0.3], **options)


def backbone(seed: int, width: int) -> nn.Module:
    torch.manual_seed(seed)
    pooled = (nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), *pooled)


def teachers() -> dict[str, nn.Module]:
    return {
        "wide": Frozen(backbone(1, 12), preprocessing=ONE),
        "large": Frozen(backbone(2, 8), preprocessing=OTHER),
    }


def knowledge(**options: Any) -> dict[str, Knowledge]:
    return {"features": Knowledge(Standardized(CosineSmoothL1()), **options)}


def fitted(data: UnlabeledImages, epochs: int = 3, seed: int = 0, **options: Any) -> tuple[Distiller, list[int]]:
    torch.manual_seed(seed)
    given = {"teacher": teachers(), "knowledge": knowledge(), "optimizer": sgd, **options}
    module = Distiller(backbone(3, 6), **given)
    calls = count_calls(module.teacher.networks[0])
    trainer(epochs).fit(module, datamodule=data)
    return module, calls


def test_cached_training_has_the_bits_of_the_live_one(tmp_path: Path) -> None:
    cache = TeacherCache(str(tmp_path / "cache"), "float32")
    live, _ = fitted(images(tmp_path / "images"))
    filled, _ = fitted(images(tmp_path / "images"), teacher_cache=cache)
    read, calls = fitted(images(tmp_path / "images"), teacher_cache=cache)
    assert len(calls) == 4  # at set-up: the dry run and how the teacher would run; in none of the 6 steps
    assert same(weights(live), weights(filled))
    assert same(weights(live), weights(read))
    # Each teacher has a projection and statistics of its own.
    names = {name.split(".")[2] for name in weights(live) if name.startswith("losses.")}
    assert names == {"student_from_wide", "student_from_large"}


def test_another_preprocessing_shares_no_rows(tmp_path: Path) -> None:
    cache = TeacherCache(str(tmp_path / "cache"), "float32")
    fitted(images(tmp_path / "images"), epochs=1, teacher_cache=cache)
    stores = {*(tmp_path / "cache").iterdir()}
    assert len(stores) == 2
    changed = {**teachers(), "wide": Frozen(backbone(1, 12), preprocessing=OTHER)}
    fitted(images(tmp_path / "images"), epochs=1, teacher_cache=cache, teacher=changed)
    assert len({*(tmp_path / "cache").iterdir()} - stores) == 1


def test_a_teacher_sees_images_as_it_was_trained_to(tmp_path: Path) -> None:
    data = images(tmp_path, padding=0, flip=False)
    seen: list[Tensor] = []
    given = teachers()
    network = given["large"].network  # type: ignore[union-attr]
    network.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    fitted(data, epochs=1, teacher=given)
    again = images(tmp_path)
    again.setup()
    raw = next(iter(again.train_dataloader())).inputs[:8]  # what the dry run takes
    expected = OTHER(normalize(raw, data.mean, data.std), (data.mean, data.std))
    assert expected.shape[2:] == (12, 12)
    assert any(x.shape == expected.shape and torch.equal(x, expected) for x in seen)


def test_a_new_process_evaluates_the_teacher_on_the_images_it_knows() -> None:
    taught, data = network(1), digits()
    module = Distiller(network(), taught, teacher_preprocessing=Preprocessing((0.9,), (0.1,)))
    (values,) = trainer().test(module, datamodule=data, verbose=False)  # no fit before
    pixels, labels = data.read(train=False)
    with torch.no_grad():
        right = taught((pixels / 255 - 0.9) / 0.1).argmax(1) == labels
        plain = taught((pixels / 255 - data.mean[0]) / data.std[0]).argmax(1) == labels
    assert values["test/teacher_accuracy"] == pytest.approx(float(right.double().mean()))
    assert float(plain.double().mean()) != pytest.approx(float(right.double().mean()))


def test_training_without_labels_has_no_task(tmp_path: Path) -> None:
    module, _ = fitted(images(tmp_path), epochs=1)
    assert module.dry_run is not None
    assert [*module.dry_run.terms] == ["features"]
    assert module.task_weight == 1.0
    assert not any("accuracy" in name for name in module.trainer.logged_metrics)


def test_labels_without_a_classifier_are_refused(tmp_path: Path) -> None:
    data = ImageFolder(str(folder(tmp_path, classes=True)), validation=4, batch_size=4)
    with pytest.raises(InputError, match="has no classifier, but the data has labels"):
        trainer().fit(Distiller(backbone(3, 6), teachers(), knowledge()), datamodule=data)
    module = Distiller(backbone(3, 6), teachers(), knowledge(), task_weight=0.0)
    trainer().fit(module, datamodule=data)


def test_different_teachers_teach_different_things(tmp_path: Path) -> None:
    chosen = {
        "one": Knowledge(CosineSmoothL1(), teachers=["wide"]),
        "two": Knowledge(QueueSimilarity(16), teachers=["large"]),
    }
    module, _ = fitted(images(tmp_path), epochs=1, knowledge=chosen)
    assert module.losses["one"].sizes == (6, 12)
    assert module.losses["two"].sizes == (6, 8)
    assert int(module.losses["two"].past.count) == 24


def test_dropping_is_the_same_in_every_run_and_differs_from_none(tmp_path: Path) -> None:
    data = [images(tmp_path) for _ in range(3)]
    first, _ = fitted(data[0], knowledge=knowledge(dropping=0.5))
    second, _ = fitted(data[1], knowledge=knowledge(dropping=0.5))
    without, _ = fitted(data[2], knowledge=knowledge())
    assert same(weights(first), weights(second))
    assert not same(weights(first), weights(without))


def test_names_of_teachers_and_ensembles_are_checked() -> None:
    with pytest.raises(InputError, match=r"cannot be named 'a\.b'"):
        Distiller(backbone(3, 6), {"a.b": backbone(1, 4)})
    with pytest.raises(InputError, match="Teachers by name stay apart"):
        Distiller(backbone(3, 6), {"a": backbone(1, 4)}, ensemble=MeanOfLogits())


@pytest.mark.filterwarnings("ignore:.*neither a fingerprint nor labels")
def test_a_teacher_from_a_file_stands_beside_a_network(tmp_path: Path) -> None:
    torch.manual_seed(0)
    rows = torch.randn(24, 4)
    np.save(tmp_path / "embedding.npy", rows.numpy())
    stored = Stored(str(tmp_path / "embedding.npy"), kind="embedding", fixed=True)
    given = {"file": stored, "wide": Frozen(backbone(1, 12), preprocessing=ONE)}
    module, _ = fitted(images(tmp_path / "images"), epochs=1, teacher=given)
    statistics = module.losses["features"]["student_from_file"].statistics
    assert torch.allclose(statistics.mean, rows.mean(0), atol=1e-6)


def test_own_preprocessing_is_timms() -> None:
    timm = pytest.importorskip("timm")
    network = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=0)
    module = Distiller(backbone(3, 6), network, teacher_preprocessing="own")
    assert module.teacher is not None
    assert module.teacher.frozen[0].preprocessing == Preprocessing((0.5,) * 3, (0.5,) * 3, (32, 32), "bicubic")
    with pytest.raises(InputError, match="does not say how it was trained"):
        Distiller(backbone(3, 6), backbone(1, 4), teacher_preprocessing="own")
