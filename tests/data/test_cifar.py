"""CIFAR: the layout of the pixels and labels, missing files, and the facts of the real CIFAR-100."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import cifar

from kdlab.data import CIFAR10, CIFAR100, ImageFolder
from kdlab.errors import InputError
from tests.data.real import DATA, needs_data


def write(folder: Path, names: list[str], label: str, classes: str) -> None:
    """Files of the original layout: rows of 3072 bytes, red then green then blue, each row by row."""
    folder.mkdir()
    for number, name in enumerate(names):
        pixels = np.zeros((2, 3, 32, 32), dtype=np.uint8)
        pixels[:, 0] = 10 + number
        pixels[:, 1, 5, 7] = 20
        (folder / name).write_bytes(pickle.dumps({"data": pixels.reshape(2, -1), label: [number, number + 1]}))
    (folder / classes).write_bytes(pickle.dumps({"label_names": ["a"], "fine_label_names": ["a"]}))


@pytest.mark.parametrize("kind", [CIFAR10, CIFAR100])
def test_the_original_files(kind: type[CIFAR10], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar, "check_integrity", lambda *arguments: True)  # these are not the files of the known sums
    if kind is CIFAR10:
        names = [f"data_batch_{number}" for number in range(1, 6)]
        write(tmp_path / "cifar-10-batches-py", [*names, "test_batch"], "labels", "batches.meta")
    else:
        write(tmp_path / "cifar-100-python", ["train", "test"], "fine_labels", "meta")
    data = kind(str(tmp_path))
    data.setup()
    assert data.sizes == ({"train": 10, "val": 2, "test": 2} if kind is CIFAR10 else {"train": 2, "val": 2, "test": 2})
    images, labels = data.read(train=True)
    assert images.dtype == torch.uint8
    assert images.shape[1:] == data.shape == (3, 32, 32)
    assert images.is_contiguous()
    assert labels[:2].tolist() == [0, 1]
    assert images[0, :, 5, 7].tolist() == [10, 20, 0]
    assert int(images[0, 1].sum()) == 20
    assert (data.padding, data.flip) == (4, True)


@pytest.mark.parametrize("kind", [CIFAR10, CIFAR100])
def test_missing_files(kind: type[CIFAR10], tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=f"{kind.__name__} is missing or damaged in .*; pass download=true to fetch it"
    ):
        kind(str(tmp_path)).setup()


@pytest.mark.full
@needs_data
def test_the_real_cifar_100_from_its_zip_files() -> None:
    data = ImageFolder(str(DATA / "cifar100"), validation=5000)
    data.setup("fit")
    assert data.sizes == {"train": 45_000, "val": 5_000, "test": 10_000}
    assert data.shape == (3, 32, 32)
    assert data.num_classes == 100
    assert data.classes[:3] == ["apple", "aquarium_fish", "baby"]
    assert data.classes[-1] == "worm"
    trees = data._trees
    assert torch.bincount(trees["train"].labels).tolist() == [500] * 100
    assert torch.bincount(trees["test"].labels).tolist() == [100] * 100
    images = data._decoded[str(trees["train"].path)]
    for channel, (mean, std) in enumerate(zip(*CIFAR100.statistics, strict=True)):
        values = images[::5, channel].float() / 255
        assert float(values.mean()) == pytest.approx(mean, abs=2e-3)
        assert float(values.std()) == pytest.approx(std, abs=2e-3)


def folders(root: Path, *splits: str) -> None:
    """Two images in each of 100 classes; the first pixel's red is the class."""
    for split in splits:
        for label in range(100):
            place = root / split / f"class_{label:02d}"
            place.mkdir(parents=True)
            for number in range(2):
                pixels = np.zeros((32, 32, 3), dtype=np.uint8)
                pixels[0, 0] = (label, number, 7)
                Image.fromarray(pixels).save(place / f"{number}.png")


def test_class_folders_are_read_where_the_original_files_are_not(tmp_path: Path) -> None:
    folders(tmp_path, "train", "test")
    data = CIFAR100(str(tmp_path))
    data.setup()
    assert data.sizes == {"train": 200, "val": 200, "test": 200}
    images, labels = data.read(train=False)
    assert images.shape == (200, 3, 32, 32)
    assert labels.tolist() == [label for label in range(100) for _ in range(2)]
    assert images[:, 0, 0, 0].tolist() == labels.tolist()
    assert images[:, 1, 0, 0].tolist() == [0, 1] * 100


def test_class_folders_without_a_test_set_are_refused(tmp_path: Path) -> None:
    folders(tmp_path, "train")
    with pytest.raises(InputError, match="none for the test: add test or test"):
        CIFAR100(str(tmp_path)).setup()


def test_the_original_files_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar, "check_integrity", lambda *arguments: True)
    folders(tmp_path, "train", "test")
    write(tmp_path / "cifar-100-python", ["train", "test"], "fine_labels", "meta")
    data = CIFAR100(str(tmp_path))
    data.setup()
    assert data.sizes["train"] == 2


@pytest.mark.full
def test_the_content_hashes_all_images_and_labels(tmp_path: Path) -> None:
    folders(tmp_path, "train", "test")

    def content(**options: Any) -> str:
        data = CIFAR100(str(tmp_path), **options)
        data.setup()
        return data.content()

    whole = content()
    assert content(seed=3, train_size=100, padding=0) == content(validation=100) == whole
    for split in ("train", "test"):
        (tmp_path / split / "class_05").rename(tmp_path / split / "class_05b")  # still the sixth class
    assert content() == whole
    (tmp_path / "test/class_99/1.png").rename(tmp_path / "test/class_98/2.png")  # another label
    assert (moved := content()) != whole
    pixels = np.full((32, 32, 3), 9, dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "train/class_00/0.png")  # another image
    assert content() not in (whole, moved)
