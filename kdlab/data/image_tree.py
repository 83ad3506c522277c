"""One split of an image folder: a directory or a zip file with one folder per class."""

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
    """The images of one split, ordered by class and name; classes are numbered in alphabetical order.

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
            except Exception as error:  # a damaged directory can raise almost anything
                raise InputError(f"{path} is not a readable zip file ({error}).") from error
            entries = [entry for entry in entries if not _hidden(entry)]
            prefix = f"{path.stem}/"  # train.zip may hold train/<class>/... or <class>/...
            self.prefix = prefix if entries and all(entry.startswith(prefix) for entry in entries) else ""
            entries = [entry[len(self.prefix) :] for entry in entries]
        else:
            self.prefix = ""
            entries = [entry for entry in _walk(path) if not _hidden(entry)]
        folders = {entry.split("/", 1)[0] for entry in entries if "/" in entry}
        images = [entry for entry in entries if PurePosixPath(entry).suffix.lower() in SUFFIXES and entry[-1] != "/"]
        stray = [entry for entry in images if "/" not in entry]
        if stray:
            raise InputError(f"{path} has the image {stray[0]!r} outside its class folders.")
        if not images:
            raise InputError(f"{path} has no images in class folders ({', '.join(sorted(SUFFIXES))}).")
        self.classes = sorted(folders)
        label_of = {name: number for number, name in enumerate(self.classes)}
        by_class = sorted((label_of[entry.split("/", 1)[0]], entry) for entry in images)
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
        """Return the decoded image at a position, (3, H, W) uint8, RGB; each process uses a separate zip handle.

        Raises:
            InputError: the image cannot be read or decoded.
        """
        name = self.names[position]
        try:
            raw = self._archive().read(self.prefix + name) if self.zipped else (self.path / name).read_bytes()
            with Image.open(io.BytesIO(raw)) as opened:
                pixels = np.array(opened.convert("RGB"))
        except Exception as error:  # Pillow's formats raise different exceptions
            reason = "it is not an image" if isinstance(error, UnidentifiedImageError) else str(error)
            raise InputError(f"The image {name!r} of {self.path} cannot be decoded: {reason}.") from error
        return torch.from_numpy(pixels).permute(2, 0, 1)

    def stamps(self, positions: Sequence[int]) -> list[tuple[str, int, int]]:
        """Return name, size in bytes and modification time in ns (in a zip file the checksum) of images."""
        if self.zipped:
            entries = (self._archive().getinfo(self.prefix + self.names[position]) for position in positions)
            return [(entry.filename, entry.file_size, entry.CRC) for entry in entries]
        stats = ((self.names[position], (self.path / self.names[position]).stat()) for position in positions)
        return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]

    def _archive(self) -> zipfile.ZipFile:
        """Return this process's handle of the zip file."""
        if self._handle is None or self._handle[0] != os.getpid():
            self._handle = os.getpid(), zipfile.ZipFile(self.path)
        return self._handle[1]


def splits(root: Path) -> dict[str, Tree]:
    """Return the splits in ``root``, each a directory or a zip file named train, val or test.

    Raises:
        InputError: ``root`` or the training split does not exist, or two splits have different classes.
    """
    if not root.is_dir():
        raise InputError(f"The image folder {str(root)!r} does not exist.")
    trees = {}
    for name in ("train", "val", "test"):
        paths = [path for path in (root / name, root / f"{name}.zip") if path.exists()]
        if paths:
            trees[name] = Tree(paths[0])
    if "train" not in trees:
        raise InputError(f"{str(root)!r} has neither a folder 'train' nor a file 'train.zip'.")
    for name, tree in trees.items():
        differing = sorted(set(tree.classes) ^ set(trees["train"].classes))
        if differing:
            raise InputError(f"The splits 'train' and {name!r} differ in classes: {', '.join(differing[:5])}.")
    return trees


def _walk(path: Path) -> Iterable[str]:
    """Yield every folder (with a trailing slash) and file under ``path``, relative to it."""
    for folder, folders, files in os.walk(path, followlinks=True):
        inside = Path(folder).relative_to(path)
        yield from (f"{(inside / name).as_posix()}/" for name in folders)
        yield from ((inside / name).as_posix() for name in files)


def _hidden(entry: str) -> bool:
    """Return whether an entry is a hidden file or macOS metadata."""
    return any(part.startswith(".") or part == "__MACOSX" for part in entry.split("/"))
