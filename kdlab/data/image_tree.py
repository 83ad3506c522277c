"""One split of an image folder: a directory or a zip file with one folder for each class."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from kdlab.errors import InputError

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}


class Tree:
    """The images of one split, in the order of class and then of name; a class's index is its place in the alphabet.

    Attributes:
        path: the directory or the zip file.
        classes: names of the class folders, in alphabetical order.
        labels: (N,) int64.

    Raises:
        InputError: the zip file is damaged, an image lies outside the class folders, or a class has no images.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.zipped = path.is_file()
        self._handle: tuple[int, zipfile.ZipFile] | None = None
        if self.zipped:
            try:
                with zipfile.ZipFile(path) as archive:
                    entries = archive.namelist()
            except (zipfile.BadZipFile, OSError) as error:
                raise InputError(f"{path} is not a readable zip file ({error}).") from error
            entries = [entry for entry in entries if not _hidden(entry)]
            prefix = f"{path.stem}/"  # train.zip may hold train/<class>/... or <class>/...
            self.prefix = prefix if entries and all(entry.startswith(prefix) for entry in entries) else ""
            entries = [entry[len(self.prefix) :] for entry in entries]
        else:
            self.prefix = ""
            entries = [entry for entry in _walk(path) if not _hidden(entry)]
        folders = {entry.split("/", 1)[0] for entry in entries if "/" in entry}
        found = [entry for entry in entries if PurePosixPath(entry).suffix.lower() in SUFFIXES and entry[-1] != "/"]
        stray = [entry for entry in found if "/" not in entry]
        if stray:
            raise InputError(f"{path} has the image {stray[0]!r} outside its class folders.")
        if not found:
            raise InputError(f"{path} has no images in class folders ({', '.join(sorted(SUFFIXES))}).")
        self.classes = sorted(folders)
        place = {name: number for number, name in enumerate(self.classes)}
        by_class = sorted((place[entry.split("/", 1)[0]], entry) for entry in found)
        self.labels = torch.tensor([label for label, _ in by_class])
        self.names = [entry for _, entry in by_class]
        counts = torch.bincount(self.labels, minlength=len(self.classes)).tolist()
        empty = [name for name, count in zip(self.classes, counts, strict=True) if not count]
        if empty:
            raise InputError(f"{path} has no images of class {empty[0]!r}.")

    def __len__(self) -> int:
        return len(self.names)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_handle": None}

    def image(self, position: int) -> Tensor:
        """The decoded image at one position, (3, H, W) uint8, RGB; each process reads through its own zip handle.

        Raises:
            InputError: it cannot be read or decoded.
        """
        name = self.names[position]
        try:
            raw = self._archive().read(self.prefix + name) if self.zipped else (self.path / name).read_bytes()
            with Image.open(io.BytesIO(raw)) as opened:
                pixels = np.array(opened.convert("RGB"))
        except Exception as error:  # each of Pillow's formats fails in its own way
            reason = "it is not an image" if isinstance(error, UnidentifiedImageError) else str(error)
            raise InputError(f"The image {name!r} of {self.path} cannot be decoded: {reason}.") from error
        return torch.from_numpy(pixels).permute(2, 0, 1)

    def stamps(self, positions: Sequence[int]) -> list[tuple[str, int, int]]:
        """Name, size in bytes and time of change in ns (in a zip file the checksum) of the images at ``positions``."""
        if self.zipped:
            entries = (self._archive().getinfo(self.prefix + self.names[each]) for each in positions)
            return [(entry.filename, entry.file_size, entry.CRC) for entry in entries]
        found = ((self.names[each], (self.path / self.names[each]).stat()) for each in positions)
        return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in found]

    def _archive(self) -> zipfile.ZipFile:
        if self._handle is None or self._handle[0] != os.getpid():
            self._handle = os.getpid(), zipfile.ZipFile(self.path)
        return self._handle[1]


def splits(root: Path) -> dict[str, Tree]:
    """The splits in ``root``, each a directory or a zip file named train, val or test.

    Raises:
        InputError: there is no ``root`` or no training split, or two splits have different classes.
    """
    if not root.is_dir():
        raise InputError(f"The image folder {str(root)!r} does not exist.")
    found = {}
    for name in ("train", "val", "test"):
        paths = [path for path in (root / name, root / f"{name}.zip") if path.exists()]
        if paths:
            found[name] = Tree(paths[0])
    if "train" not in found:
        raise InputError(f"{str(root)!r} has neither a folder 'train' nor a file 'train.zip'.")
    for name, tree in found.items():
        differing = sorted(set(tree.classes) ^ set(found["train"].classes))
        if differing:
            raise InputError(f"The splits 'train' and {name!r} differ in classes: {', '.join(differing[:5])}.")
    return found


def _walk(path: Path) -> Iterable[str]:
    """Every folder (with a slash at its end) and file under ``path``, relative to it."""
    for folder, folders, files in os.walk(path, followlinks=True):
        inside = Path(folder).relative_to(path)
        yield from (f"{(inside / name).as_posix()}/" for name in folders)
        yield from ((inside / name).as_posix() for name in files)


def _hidden(entry: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in entry.split("/"))
