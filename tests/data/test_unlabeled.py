"""Images without classes, from every kind of source."""

from __future__ import annotations

import io
import random
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from kdlab.data import UnlabeledImages
from kdlab.data.image_sources import Joined, source_of
from kdlab.errors import InputError

COLORS = {f"{letter}.png": number for number, letter in enumerate("abcdef")}


def png(value: int, size: int = 8) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((size, size, 3), 40 * value, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def folder(path: Path) -> Path:
    """Six images: two at the top, the others in folders of several depths."""
    for number, (name, value) in enumerate(COLORS.items()):
        place = path / ["", "", "x", "x", "y/z", "y"][number] / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(png(value))
    return path


def values(source: object) -> list[int]:
    return [int(source.image(n)[0, 0, 0]) // 40 for n in range(len(source))]  # type: ignore[attr-defined, arg-type]


def test_a_folder_is_read_with_its_subfolders(tmp_path: Path) -> None:
    source = source_of(folder(tmp_path))
    assert source.names == ["a.png", "b.png", "x/c.png", "x/d.png", "y/f.png", "y/z/e.png"]
    assert values(source) == [0, 1, 2, 3, 5, 4]
    assert source.labels.tolist() == [-100] * 6


def test_a_zip_file_and_a_folder_of_them(tmp_path: Path) -> None:
    for name, members in (("one.zip", ["a.png", "b.png"]), ("two.zip", ["x/c.png"])):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            for member in members:
                archive.writestr(member, png(COLORS[member[-5:]]))
    assert values(source_of(tmp_path / "one.zip")) == [0, 1]
    assert values(source_of(tmp_path)) == [0, 1, 2]


def test_a_list_of_files_keeps_its_order(tmp_path: Path) -> None:
    folder(tmp_path)
    (tmp_path / "files.txt").write_text(f"x/d.png\n{tmp_path / 'a.png'}\n\ny/z/e.png\n")
    assert values(source_of(tmp_path / "files.txt")) == [3, 0, 4]
    (tmp_path / "twice.txt").write_text("a.png\nb.png\na.png\n")
    with pytest.raises(InputError, match=r"names 'a\.png' twice"):
        source_of(tmp_path / "twice.txt")


@pytest.mark.parametrize("as_struct", [False, True])
def test_a_parquet_file_by_groups_of_rows(tmp_path: Path, as_struct: bool) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [{"bytes": png(n), "path": str(n)} if as_struct else png(n) for n in range(5)]
    parquet.write_table(pyarrow.table({"picture": rows}), tmp_path / "images.parquet", row_group_size=2)
    source = source_of(tmp_path / "images.parquet", "picture")
    order = random.Random(0).sample(range(5), 5)
    assert [int(source.image(n)[0, 0, 0]) // 40 for n in order] == order
    with pytest.raises(InputError, match=r"no column 'image', but \['picture'\]"):
        source_of(tmp_path / "images.parquet")


@pytest.mark.full
def test_shards_of_litdata_by_index(tmp_path: Path) -> None:
    pytest.importorskip("litdata")
    from litdata.streaming.writer import BinaryWriter

    writer = BinaryWriter(str(tmp_path), chunk_size=2)
    for number in range(5):
        writer[number] = {"image": png(number)}
    writer.done()
    writer.merge()
    assert len(list(tmp_path.glob("*.bin"))) > 1
    source = source_of(tmp_path)
    assert [int(source.image(n)[0, 0, 0]) // 40 for n in (4, 0, 3)] == [4, 0, 3]
    with pytest.raises(InputError, match=r"have no 'picture', but \['image'\]"):
        source_of(tmp_path, "picture")


def test_sources_joined_and_damaged_ones_left_out(tmp_path: Path) -> None:
    (folder(tmp_path / "one") / "b.png").write_bytes(b"no image")
    data = UnlabeledImages([str(folder(tmp_path / "two")), str(tmp_path / "one")], on_error="skip", batch_size=4)
    with pytest.warns(UserWarning, match="1 of 12 images are damaged"):
        data.setup()
    assert isinstance(data._trees["train"], Joined)
    assert data.sizes == {"train": 11}
    assert values(data._trees["train"]) == [0, 1, 2, 3, 5, 4, 0, 2, 3, 5, 4]


def test_nothing_to_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no images"):
        source_of(tmp_path)
    with pytest.raises(InputError, match="There is no folder or file"):
        source_of(tmp_path / "nowhere")


def test_batches_have_no_labels_and_validation_is_held_out(tmp_path: Path) -> None:
    data = UnlabeledImages(str(folder(tmp_path)), batch_size=4, validation=2, flip=False)
    data.setup()
    batch = next(iter(data.train_dataloader()))
    assert batch.target.tolist() == [-100] * 4
    held_out = next(iter(data.val_dataloader()))
    assert len(held_out.target) == 2
    shown = {*batch.inputs[:, 0, 0, 0].tolist()} | {*held_out.inputs[:, 0, 0, 0].tolist()}
    assert shown == {40 * n for n in range(6)}
    alone = UnlabeledImages(str(tmp_path), batch_size=4)
    alone.setup()
    assert alone.val_dataloader() == []


def test_mean_std_and_size_are_the_students_where_not_given(tmp_path: Path) -> None:
    student = nn.Conv2d(3, 2, 1)
    student.pretrained_cfg = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6), "input_size": (3, 16, 16)}
    given = UnlabeledImages(str(folder(tmp_path)), mean=[0.0] * 3, std=[1.0] * 3, size=8, in_memory=False, batch_size=4)
    own = UnlabeledImages(str(tmp_path), in_memory=False, batch_size=4)
    for data in (given, own):
        data.setup()
        data.adopt(student)
    assert (given.mean, given.std, given.shape) == ([0.0] * 3, [1.0] * 3, (3, 8, 8))
    assert (list(own.mean), list(own.std), own.shape) == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6], (3, 16, 16))
    assert next(iter(own.train_dataloader())).inputs.shape == (4, 3, 16, 16)
    assert torch.equal(next(iter(own.train_dataloader())).target, torch.full((4,), -100))
