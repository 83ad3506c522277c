"""Image folders: directory and zip, memory and stream, and every error message."""

from __future__ import annotations

import itertools
import pickle
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from kdlab.data import ImageFolder, decoding
from kdlab.data.image_tree import Tree
from kdlab.errors import InputError
from tests.data.tiny import Notes, trainer

CLASSES = ["ant", "bee", "cat"]


def write(
    root: Path, splits: tuple[str, ...] = ("train", "test"), each: int = 5, size: int = 6, suffix: str = "png"
) -> Path:
    """Random images, ``each`` a class and split."""
    generator = np.random.default_rng(0)
    for split, name, number in itertools.product(splits, CLASSES, range(each)):
        folder = root / split / name
        folder.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 256, (size, size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.{suffix}")
    return root


def zip_up(root: Path, split: str, inside: str) -> None:
    """Replace a split's directory by a zip file."""
    with zipfile.ZipFile(root / f"{split}.zip", "w") as archive:
        for path in sorted((root / split).rglob("*"), reverse=True):
            archive.write(path, inside + path.relative_to(root / split).as_posix())
        archive.writestr("__MACOSX/._0.png", b"rubbish")
    shutil.rmtree(root / split)


def ready(root: Path, stage: str | None = None, **options: Any) -> ImageFolder:
    data = ImageFolder(str(root), **({"batch_size": 4, "eval_batch_size": 4} | options))
    data.setup(stage)
    return data


def everything(batches: Any) -> list[torch.Tensor]:
    return [torch.cat(parts) for parts in list(zip(*batches, strict=True))[:3]]


def equal(first: Any, second: Any) -> bool:
    return all(torch.equal(one, two) for one, two in zip(everything(first), everything(second), strict=True))


def test_labels_follow_the_alphabet_and_pixels_the_files(tmp_path: Path) -> None:
    data = ready(write(tmp_path))
    assert (data.classes, data.num_classes, data.shape) == (CLASSES, 3, (3, 6, 6))
    assert data.sizes == {"train": 15, "val": 15, "test": 15}
    images, labels, index = everything(data.test_dataloader())
    assert labels.tolist() == [0] * 5 + [1] * 5 + [2] * 5
    assert index.tolist() == list(range(15))
    expected = np.asarray(Image.open(tmp_path / "test/bee/2.png"))
    assert np.array_equal(images[7].permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize("inside", ["train/", ""])
@pytest.mark.parametrize("in_memory", [True, False])
def test_a_zip_file_equals_the_directory(tmp_path: Path, inside: str, in_memory: bool) -> None:
    write(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    zip_up(tmp_path / "b", "train", inside)
    zip_up(tmp_path / "b", "test", inside.replace("train", "test"))
    options = {"in_memory": in_memory, "size": 4, "resize": 5}
    first, second = (ready(tmp_path / name, **options) for name in "ab")
    assert equal(first.train_dataloader(), second.train_dataloader())
    assert equal(first.test_dataloader(), second.test_dataloader())


def test_streaming_equals_memory_where_nothing_is_resized(tmp_path: Path) -> None:
    write(tmp_path)
    memory = ready(tmp_path, in_memory=True)
    stream = ready(tmp_path, in_memory=False, size=6, resize=6)
    assert equal(memory.test_dataloader(), stream.test_dataloader())
    pairs = [everything(data.train_dataloader()) for data in (memory, stream)]
    assert torch.equal(pairs[0][1], pairs[1][1])  # the same order
    assert torch.equal(pairs[0][2], pairs[1][2])


@pytest.mark.parametrize("zipped", [False, True])
def test_workers_change_nothing(tmp_path: Path, zipped: bool) -> None:
    write(tmp_path, size=20)
    if zipped:
        zip_up(tmp_path, "train", "train/")
    options = {"in_memory": False, "size": 8, "resize": 8}
    plain, workers = ready(tmp_path, **options), ready(tmp_path, num_workers=2, **options)
    served = workers.train_dataloader()
    for epoch in range(2):
        alone = plain.train_dataloader()
        alone.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        served.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        assert equal(alone, served)


def test_streamed_crops_depend_on_epoch_and_sample_alone(tmp_path: Path) -> None:
    write(tmp_path, size=20)
    epochs = []
    for batch_size, epoch in ((4, 0), (7, 0), (4, 1)):
        data = ready(tmp_path, in_memory=False, size=8, resize=8, batch_size=batch_size)
        batches = data.train_dataloader()
        batches.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        images, _, index = everything(batches)
        assert images.shape == (15, 3, 8, 8)
        assert images.dtype == torch.uint8
        epochs.append(images[index.argsort()])
    assert torch.equal(epochs[0], epochs[1])
    assert not torch.equal(epochs[0], epochs[2])
    batch = next(iter(data.train_dataloader()))
    assert torch.equal(data.prepare(batch, 0).inputs, data.prepare(batch).inputs)  # not augmented twice


def test_memory_is_chosen_by_size_and_limit(tmp_path: Path) -> None:
    write(tmp_path)
    assert ready(tmp_path, memory_limit=2 * 15 * 3 * 36).shape == (3, 6, 6)
    assert ready(tmp_path, memory_limit=2 * 15 * 3 * 36 - 1).shape == (3, 224, 224)
    Image.new("RGB", (7, 6)).save(tmp_path / "train/cat/4.png")
    assert ready(tmp_path, "fit").shape == (3, 224, 224)


def test_missing_splits_are_filled_in(tmp_path: Path) -> None:
    only_val = ready(write(tmp_path / "a", ("train", "val"), each=2))
    assert equal(only_val.val_dataloader(), only_val.test_dataloader())
    all_three = ready(write(tmp_path / "b", ("train", "val", "test"), each=2))
    assert not equal(all_three.val_dataloader(), all_three.test_dataloader())
    held_out = ready(write(tmp_path / "c", ("train",)), validation=3)
    assert held_out.sizes == {"train": 12, "val": 3, "test": 3}
    assert everything(held_out.val_dataloader())[1].tolist() == [0, 1, 2]
    assert equal(held_out.val_dataloader(), held_out.test_dataloader())


def test_a_stage_decodes_what_it_needs(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "train/ant/3.png").write_bytes(b"rubbish")
    data = ready(tmp_path, "test")
    assert data.sizes["train"] == 15
    assert len(data.test_dataloader()) == 4
    with pytest.raises(InputError, match="train images are not read yet"):
        data.train_dataloader()
    with pytest.raises(InputError, match="cannot be decoded"):
        data.setup("fit")


@pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")
@pytest.mark.parametrize("in_memory", [True, False])
def test_lightning_trains_on_it(tmp_path: Path, in_memory: bool) -> None:
    write(tmp_path / "data", size=20)
    data = ImageFolder(str(tmp_path / "data"), batch_size=5, in_memory=in_memory, size=8, resize=8)
    notes = Notes()
    notes.net = torch.nn.Linear(3 * (20 if in_memory else 8) ** 2, 3)
    trainer(tmp_path, max_epochs=2).fit(notes, data)
    assert [epoch for epoch, _, _ in notes.seen] == [0, 0, 0, 1, 1, 1]
    assert len({pixels for _, _, pixels in notes.seen}) == 6


def _no_root(root: Path) -> None:
    shutil.rmtree(root)


def _no_train(root: Path) -> None:
    shutil.rmtree(root / "train")


def _only_train(root: Path) -> None:
    shutil.rmtree(root / "test")


def _no_images(root: Path) -> None:
    shutil.rmtree(root / "train")
    (root / "train").mkdir()


def _empty_class(root: Path) -> None:
    (root / "train/dog").mkdir()


def _other_classes(root: Path) -> None:
    (root / "test/bee").rename(root / "test/wasp")


def _outside(root: Path) -> None:
    shutil.copy(root / "train/ant/0.png", root / "train/loose.png")


def _bad_zip(root: Path) -> None:
    shutil.rmtree(root / "test")
    (root / "test.zip").write_bytes(b"PK no zip")


def _truncated(root: Path) -> None:
    path = root / "train/bee/1.png"
    path.write_bytes(path.read_bytes()[:90])


def _rubbish(root: Path) -> None:
    (root / "train/bee/1.png").write_bytes(b"rubbish")


def _other_size(root: Path) -> None:
    Image.new("RGB", (7, 8)).save(root / "train/cat/4.png")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_no_root, r"The image folder '.*' does not exist\."),
        (_no_train, r"has neither a folder 'train' nor a file 'train\.zip'\."),
        (_only_train, r"has neither 'val' nor 'test'; add one, or hold images out with validation="),
        (_no_images, r"train has no images in class folders \(\.apng, .*\.png"),
        (_empty_class, r"train has no images of class 'dog'\."),
        (_other_classes, r"The splits 'train' and 'test' differ in classes: bee, wasp\."),
        (_outside, r"train has the image 'loose\.png' outside its class folders\."),
        (_bad_zip, r"test\.zip is not a readable zip file"),
        (_truncated, r"The image 'bee/1\.png' of .*train cannot be decoded: .*\."),
        (_rubbish, r"The image 'bee/1\.png' of .*train cannot be decoded: it is not an image\."),
        (_other_size, r"The image 'cat/4\.png' of .*train is 8x7 pixels where others are 6x6; pass in_memory=false"),
    ],
)
def test_error_messages(tmp_path: Path, damage: Any, message: str) -> None:
    root = write(tmp_path / "data")
    ready(root, in_memory=True)
    damage(root)
    with pytest.raises(InputError, match=message) as caught:
        ready(root, in_memory=True)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_image_in_the_stream_is_named(tmp_path: Path, workers: int) -> None:
    _rubbish(write(tmp_path))
    data = ready(tmp_path, in_memory=False, num_workers=workers, size=6)
    with pytest.raises(InputError) as caught:
        list(data.train_dataloader())
    assert str(caught.value) == f"The image 'bee/1.png' of {tmp_path}/train cannot be decoded: it is not an image."


def test_a_damaged_image_in_a_zip_file_is_named(tmp_path: Path) -> None:
    _truncated(write(tmp_path))
    zip_up(tmp_path, "train", "train/")
    with pytest.raises(InputError, match=r"The image 'bee/1\.png' of .*train\.zip cannot be decoded"):
        ready(tmp_path)


def test_padding_raises_for_streamed_images(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="padding=4 is for images in memory"):
        ready(write(tmp_path), in_memory=False, padding=4)


def test_gray_and_transparent_images_become_rgb(tmp_path: Path) -> None:
    write(tmp_path)
    Image.new("L", (6, 6), 77).save(tmp_path / "test/ant/0.png")
    Image.new("RGBA", (6, 6), (1, 2, 3, 4)).save(tmp_path / "test/ant/1.png")
    images, _, _ = everything(ready(tmp_path).test_dataloader())
    assert images[0].unique().tolist() == [77]
    assert images[1, :, 0, 0].tolist() == [1, 2, 3]


def test_every_process_opens_the_zip_file_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path)
    zip_up(tmp_path, "train", "train/")
    tree = Tree(tmp_path / "train.zip")
    image, handle = tree.image(3), tree._archive()
    assert tree._archive() is handle
    copied = pickle.loads(pickle.dumps(tree))  # to workers that are spawned
    assert copied._handle is None
    assert torch.equal(copied.image(3), image)
    monkeypatch.setattr("os.getpid", lambda: -1)  # as after a fork, where a shared file position would mix up reads
    assert tree._archive() is not handle


def test_images_are_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "SMALL", 0)
    root, cache = write(tmp_path / "images"), str(tmp_path / "decoded")
    first = ready(root, cache=cache)
    decode = decoding.decode
    monkeypatch.setattr(decoding, "decode", lambda *_: pytest.fail("decoded again"))
    again = ready(root, cache=cache)
    assert equal(first.test_dataloader(), again.test_dataloader())
    assert first.fingerprint() == again.fingerprint()
    assert first.content() == again.content()
    monkeypatch.setattr(decoding, "decode", decode)
    assert equal(ready(root, cache=None).test_dataloader(), again.test_dataloader())
    # Another image of the same name is decoded anew.
    Image.fromarray(np.full((6, 6, 3), 7, np.uint8)).save(root / "test/ant/0.png")
    changed = everything(ready(root, cache=cache).test_dataloader())[0]
    assert (changed[0] == 7).all()


def test_a_zip_file_is_decoded_once_wherever_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "SMALL", 0)
    root, cache = write(tmp_path / "images"), str(tmp_path / "decoded")
    for split in ("train", "test"):
        zip_up(root, split, f"{split}/")
    first = ready(root, cache=cache)
    shutil.move(root, tmp_path / "moved")
    monkeypatch.setattr(decoding, "decode", lambda *_: pytest.fail("decoded again"))
    assert equal(first.test_dataloader(), ready(tmp_path / "moved", cache=cache).test_dataloader())


def test_decoded_images_that_cannot_be_kept_are_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "SMALL", 0)
    root = write(tmp_path / "images")
    (tmp_path / "file").write_text("no folder")
    data = ready(root, cache=str(tmp_path / "file/decoded"))
    assert equal(data.test_dataloader(), ready(root, cache=None).test_dataloader())
    cache = tmp_path / "decoded"
    ready(root, cache=str(cache))
    for path in cache.glob("*.npy"):
        path.write_bytes(b"rubbish")
    with pytest.raises(InputError, match="is damaged"):
        ready(root, cache=str(cache))


def test_few_images_are_not_kept(tmp_path: Path) -> None:
    ready(write(tmp_path / "images"), cache=str(tmp_path / "decoded"))
    assert not (tmp_path / "decoded").exists()
