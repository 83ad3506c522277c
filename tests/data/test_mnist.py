"""MNIST: the facts of the real data, gzipped and plain files, and damaged ones."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
import torch

from kdlab.data import MNIST
from kdlab.data.mnist import read_idx
from kdlab.errors import InputError
from tests.data.real import DATA, needs_data


def idx(content: torch.Tensor) -> bytes:
    head = bytes([0, 0, 8, content.ndim])
    return head + b"".join(size.to_bytes(4, "big") for size in content.shape) + content.numpy().tobytes()


def write(root: Path, packed: bool, count: int = 6) -> None:
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for part in ("train", "t10k"):
        images = torch.arange(count * 784).remainder(251).to(torch.uint8).view(count, 28, 28)
        for name, content in (("images-idx3", images), ("labels-idx1", torch.arange(count, dtype=torch.uint8))):
            raw = idx(content)
            path = folder / f"{part}-{name}-ubyte{'.gz' if packed else ''}"
            path.write_bytes(gzip.compress(raw) if packed else raw)


@needs_data
def test_the_real_thing() -> None:
    data = MNIST(str(DATA / "mnist"), download=True)
    data.prepare_data()  # nothing is missing, so nothing is fetched into the read-only folder
    data.setup()
    assert data.sizes == {"train": 60_000, "val": 10_000, "test": 10_000}
    images, labels = data.read(train=True)
    scaled = images.double() / 255
    assert float(scaled.mean()) == pytest.approx(0.1307, abs=5e-5) == data.mean[0]
    assert float(scaled.std()) == pytest.approx(0.3081, abs=5e-5) == data.std[0]
    assert labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert torch.bincount(labels).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    never_a_three = MNIST(str(DATA / "mnist"), omit=[3], padding=2)
    never_a_three.setup()
    assert never_a_three.sizes == {"train": 60_000 - 6131, "val": 10_000, "test": 10_000}


@pytest.mark.parametrize("packed", [False, True])
def test_packed_and_unpacked(tmp_path: Path, packed: bool) -> None:
    write(tmp_path, packed)
    data = MNIST(str(tmp_path))
    data.setup()
    batch = next(iter(data.test_dataloader()))
    assert batch.inputs.shape == (6, 1, 28, 28)
    assert batch.inputs.flatten()[:300].tolist() == [value % 251 for value in range(300)]
    assert batch.target.tolist() == [0, 1, 2, 3, 4, 5]


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"train-images-idx3-ubyte is missing; pass download=true to fetch it"):
        MNIST(str(tmp_path)).setup()


def test_damaged_files(tmp_path: Path) -> None:
    good = idx(torch.zeros(2, 3, dtype=torch.uint8))
    path = tmp_path / "images"
    for raw in (b"", good[:3], good[:-1], good + b"x", b"\x00\x00\x0d" + good[3:], b"<html>not found</html>"):
        path.write_bytes(raw)
        with pytest.raises(InputError, match="images is damaged: it is not an IDX file"):
            read_idx(path)
    path.unlink()
    packed = tmp_path / "images.gz"
    for raw in (gzip.compress(good)[:-9], b"no gzip"):
        packed.write_bytes(raw)
        with pytest.raises(InputError, match=r"images.gz is damaged"):
            read_idx(path)


def test_images_and_labels_that_do_not_belong_together(tmp_path: Path) -> None:
    write(tmp_path, packed=False)
    (tmp_path / "MNIST/raw/train-labels-idx1-ubyte").write_bytes(idx(torch.zeros(5, dtype=torch.uint8)))
    with pytest.raises(InputError, match=r"have shapes \(6, 28, 28\) and \(5,\): not MNIST's"):
        MNIST(str(tmp_path)).setup()
