"""What a split has: links, files left out, the order of classes, zip files that are not safe, damaged images."""

from __future__ import annotations

import shutil
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from kdlab.data import CIFAR10, ImageFolder
from kdlab.data.image_tree import LARGEST, Tree, ordered
from kdlab.errors import InputError
from tests.data.test_folder import everything, ready, write, zip_up

TWELVE = [str(number) for number in range(12)]


# Links


def test_a_circle_of_links_is_refused(tmp_path: Path) -> None:
    root = write(tmp_path, each=1)
    (root / "train/ant/again").symlink_to(root / "train/ant")
    with pytest.raises(InputError, match=r"train/ant' and '.*train/ant/again' are one folder.*remove the link"):
        ready(root)


def test_folders_that_link_each_other_are_refused(tmp_path: Path) -> None:
    root = write(tmp_path, each=1)
    (root / "train/ant/other").symlink_to(root / "train/bee")
    (root / "train/bee/other").symlink_to(root / "train/ant")
    with pytest.raises(InputError, match="are one folder, whose images would count twice"):
        ready(root)


def test_a_link_that_leads_up_is_refused(tmp_path: Path) -> None:
    root = write(tmp_path, each=1)
    (root / "train/ant/up").symlink_to(root)
    with pytest.raises(InputError, match="are one folder, whose images would count twice"):
        ready(root)


def test_linked_folders_and_files_are_read(tmp_path: Path) -> None:
    root = write(tmp_path / "data", each=2)
    (root / "train/cat").rename(tmp_path / "elsewhere")
    (root / "train/cat").symlink_to(tmp_path / "elsewhere")
    (root / "train/ant/0.png").rename(tmp_path / "one.png")
    (root / "train/ant/0.png").symlink_to(tmp_path / "one.png")
    assert ready(root).sizes["train"] == 6


def test_a_broken_link_is_named(tmp_path: Path) -> None:
    root = write(tmp_path, each=2)
    (root / "train/ant/9.png").symlink_to(root / "nowhere.png")
    with pytest.raises(InputError, match=r"image 'ant/9\.png' of .*train cannot be read: it is a broken link"):
        ready(root)


# Files left out


def test_files_left_out_are_counted(tmp_path: Path) -> None:
    root = write(tmp_path, each=2)
    for name in ("notes.txt", "a.npy", "b.npy", "README", ".hidden.png", "._0.png", ".DS_Store"):
        (root / "train/ant" / name).touch()
    with pytest.warns(UserWarning, match=r"train: 5 files are not read.*\(2 \.npy, .*1 \.txt") as said:
        tree = Tree(root / "train")
    assert len(tree) == 6
    assert "1 without suffix" in str(said[0].message)
    assert "1 hidden" in str(said[0].message)


@pytest.mark.parametrize("suffix", ["pgm", "jfif", "tga", "JPG"])
def test_uncommon_suffixes_are_images(tmp_path: Path, suffix: str) -> None:
    root = write(tmp_path, each=2)
    form = "JPEG" if suffix == "jfif" else None
    Image.new("L", (6, 6), 9).save(root / f"train/ant/9.{suffix}", format=form)
    assert ready(root).sizes["train"] == 7


# The order of classes


def test_numbers_in_another_order_need_a_choice(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for number in TWELVE:
            (tmp_path / split / number).mkdir(parents=True)
            Image.new("RGB", (2, 2), (int(number),) * 3).save(tmp_path / split / number / "0.png")
    with pytest.raises(InputError, match=r"0, 1, 10, 11, .*class_order='number' \(as in timm\)") as caught:
        ready(tmp_path)
    assert caught.value.key == "data.class_order"
    shades = {}
    for order in ("number", "text"):
        data = ready(tmp_path, class_order=order)
        images, labels, _ = everything(data.val_dataloader())
        shades[order] = images[labels.argsort(), 0, 0, 0].tolist()
        assert data.classes == [str(shade) for shade in shades[order]]
    assert shades == {"number": [*range(12)], "text": [0, 1, 10, 11, 2, 3, 4, 5, 6, 7, 8, 9]}  # torchvision's


def test_names_without_a_doubt_are_ordered_as_text() -> None:
    for names in ([f"{number:02}" for number in range(12)], [*"0123456789"], ["737-800", "9", "ant"], ["n02", "n10"]):
        assert ordered(reversed_copy(names)) == sorted(names)
    with pytest.raises(InputError, match="class1, class10, class2"):
        ordered([f"class{number}" for number in (10, 2, 1)])


def reversed_copy(names: list[str]) -> list[str]:
    return names[::-1]


def test_classes_in_the_order_of_a_teacher(tmp_path: Path) -> None:
    data = ready(write(tmp_path, each=1), class_order=["cat", "ant", "bee"])
    images, labels, _ = everything(data.test_dataloader())
    assert labels.tolist() == [0, 1, 2]
    assert torch.equal(images[0], Tree(tmp_path / "test").image(2))
    with pytest.raises(InputError, match="must name each class folder once; it differs in dog"):
        ready(tmp_path, class_order=["cat", "ant", "bee", "dog"])
    with pytest.raises(InputError, match="class_order is 'text' or 'number', not 'size'"):
        ready(tmp_path, class_order="size")


def test_numbered_folders_of_cifar_are_the_labels(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for number in TWELVE[:11]:
            (tmp_path / split / number).mkdir(parents=True)
            Image.new("RGB", (32, 32), (int(number),) * 3).save(tmp_path / split / number / "0.png")
    images, labels = CIFAR10(str(tmp_path)).read(train=True)
    assert torch.equal(images[:, 0, 0, 0].long(), labels)


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_class_without_a_folder_in_a_split_is_refused(tmp_path: Path, split: str) -> None:
    root = write(tmp_path, ("train", "val", "test"), each=1)
    shutil.rmtree(root / split / "ant")  # the labels of the other two would shift
    with pytest.raises(InputError, match=f"'train' and '{split}' differ in classes: ant"):
        ready(root)


# Zip files


def archive(path: Path, *names: str, size: int = 0) -> Path:
    """A zip file with further entries, the first of which claims to have ``size`` bytes."""
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a duplicate name
        for name in names:
            info = zipfile.ZipInfo()
            info.filename = name
            file.writestr(info, b"content")
        if size:
            file.filelist[-1].file_size = size
    return path


@pytest.mark.parametrize(
    "name", ["../out.png", "train/../../out.png", "/etc/out.png", "C:/out.png", "train\\ant\\1.png", "..\\out.png"]
)
def test_entries_outside_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    zip_up(write(tmp_path), "train", "train/")
    archive(tmp_path / "train.zip", name)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match="which is no path below its folder"):
        ready(tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


def test_an_entry_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    zip_up(write(tmp_path), "train", "train/")
    archive(tmp_path / "train.zip", "train/ant/0.png")
    with pytest.raises(InputError, match=r"has 2 entries 'train/ant/0\.png'"):
        ready(tmp_path)


def test_an_entry_larger_than_any_image_is_refused(tmp_path: Path) -> None:
    zip_up(write(tmp_path), "train", "train/")
    archive(tmp_path / "train.zip", "train/ant/bomb.png", size=LARGEST + 1)
    with pytest.raises(InputError, match=rf"'train/ant/bomb\.png' of {LARGEST + 1} bytes, more than any image has"):
        ready(tmp_path)


def test_an_entry_is_not_unpacked_beyond_its_claim(tmp_path: Path) -> None:
    zip_up(write(tmp_path), "train", "train/")
    with zipfile.ZipFile(tmp_path / "train.zip", "a", zipfile.ZIP_DEFLATED) as file:
        file.writestr("train/ant/bomb.png", bytes(1 << 22))
        file.filelist[-1].file_size = 100
    tree = Tree(tmp_path / "train.zip")
    with pytest.raises(InputError, match=r"'ant/bomb\.png' of .* cannot be"):
        tree.image(tree.names.index("ant/bomb.png"))


def test_a_file_beside_the_folder_in_a_zip_is_no_class(tmp_path: Path) -> None:
    zip_up(write(tmp_path), "train", "train/")
    archive(tmp_path / "train.zip", "README.txt")
    with pytest.warns(UserWarning, match=r"1 files are not read.*1 \.txt"):
        assert ready(tmp_path).classes == ["ant", "bee", "cat"]


# Damaged images


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:60])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _break(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere.png")


@pytest.mark.parametrize("damage", [_truncate, _empty, _break])
@pytest.mark.parametrize("in_memory", [True, False])
def test_skipping_equals_a_folder_without_them(tmp_path: Path, damage: Callable[[Path], None], in_memory: bool) -> None:
    options = {"in_memory": in_memory, "size": 6, "resize": 6, "train_size": 9}
    write(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    for name in ("train/ant/1.png", "train/cat/4.png", "test/bee/0.png"):
        damage(tmp_path / "a" / name)
        (tmp_path / "b" / name).unlink()
    with pytest.warns(UserWarning, match=r"images are damaged and left out\. The image '") as said:
        skipped = ready(tmp_path / "a", on_error="skip", **options)
    train, test = (str(each.message) for each in said)
    assert "train: 2 of 15" in train
    assert "'ant/1.png'" in train
    assert "'cat/4.png'" in train
    assert "test: 1 of 15" in test
    clean = ready(tmp_path / "b", **options)
    assert skipped.sizes == clean.sizes == {"train": 9, "val": 14, "test": 14}
    for loader in ("train_dataloader", "test_dataloader"):
        one, other = (getattr(data, loader)() for data in (skipped, clean))
        assert all(torch.equal(a, b) for a, b in zip(everything(one), everything(other), strict=True))


def test_a_class_of_damaged_images_alone_is_refused(tmp_path: Path) -> None:
    root = write(tmp_path, each=1)
    _empty(root / "train/bee/0.png")
    with pytest.warns(UserWarning, match="damaged"), pytest.raises(InputError, match="no images of class 'bee'"):
        ready(root, on_error="skip")


def test_sound_images_without_8_bit_values_are_not_skipped(tmp_path: Path) -> None:
    root = write(tmp_path, each=2)
    Image.new("F", (6, 6)).save(root / "train/bee/9.tif")
    with pytest.raises(InputError, match=r"'bee/9\.tif' of .*train has pixels of Pillow's mode 'F'"):
        ready(root, on_error="skip")


def test_an_unknown_policy_is_refused() -> None:
    with pytest.raises(InputError, match="on_error is 'raise' or 'skip', not 'ignore'"):
        ImageFolder("data", on_error="ignore")  # type: ignore[arg-type]
