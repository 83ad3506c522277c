"""One split of an image folder: a directory or a zip file with one folder per class."""

from __future__ import annotations

import os
import re
import zipfile
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import torch
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor

from kdlab.data import pixels
from kdlab.errors import InputError, check_word

SUFFIXES = {
    *(".apng", ".avif", ".bmp", ".dib", ".gif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg"),
    *(".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp"),
}
LARGEST = 1 << 29
"""Bytes that an image may have in a zip file, unpacked: those of the most pixels that Pillow decodes, as RGB."""

ClassOrder = Literal["text", "number"] | Sequence[str] | None


class Tree:
    """The images of one split, ordered by class and name.

    Hidden files and files that are no images (by suffix) are left out, and counted in a warning.

    Args:
        path: the directory or the zip file.
        class_order: see :func:`ordered`.

    Attributes:
        path: the directory or the zip file.
        classes: names of the class folders, in the order of their labels.
        labels: (N,) int64.
        names: N names of files, from the class folder on.

    Raises:
        InputError: the zip file is damaged or unsafe, a folder cannot be listed or occurs twice, an image lies outside
            the class folders, or a class has no images.
    """

    def __init__(self, path: Path, class_order: ClassOrder = None) -> None:
        images = self._list(path)
        stray = [entry for entry in images if "/" not in entry]
        if stray:
            raise InputError(f"{path} has the image {stray[0]!r} outside its class folders.")
        if not images:
            raise InputError(f"{path} has no images in class folders ({', '.join(sorted(SUFFIXES))}).")
        self.classes = ordered(self._folders, class_order)
        label_of = {name: number for number, name in enumerate(self.classes)}
        by_class = sorted((label_of[entry.split("/", 1)[0]], entry) for entry in images)
        self._use(by_class)

    def _list(self, path: Path) -> list[str]:
        """Return the images of a directory or zip file."""
        self.path = path
        self.zipped = path.is_file()
        self._handle: tuple[int, zipfile.ZipFile] | None = None
        self.prefix = ""
        entries = _entries(path) if self.zipped else [*_walk(path)]
        hidden = sum(_is_image(entry) and not _metadata(entry) for entry in entries if _hidden(entry))
        entries = [entry for entry in entries if not _hidden(entry)]
        if self.zipped and any("/" in entry for entry in entries):
            prefix = f"{path.stem}/"  # train.zip may hold train/<class>/... or <class>/...
            self.prefix = prefix if all(entry.startswith(prefix) for entry in entries if "/" in entry) else ""
            entries = [entry.removeprefix(self.prefix) for entry in entries]
        self._folders = {entry.split("/", 1)[0] for entry in entries if "/" in entry}
        images = [entry for entry in entries if _is_image(entry)]
        files = [entry for entry in entries if entry and entry[-1] != "/" and not _is_image(entry)]
        unread = Counter(PurePosixPath(entry).suffix or "without suffix" for entry in files)
        unread += Counter({"hidden": hidden})
        if unread:
            kinds = ", ".join(f"{count} {kind}" for kind, count in unread.most_common(5))
            rank_zero_warn(f"{path}: {unread.total()} files are not read, as they are hidden or no images ({kinds}).")
        return images

    def _use(self, by_class: Sequence[tuple[int, str]]) -> None:
        self.labels = torch.tensor([label for label, _ in by_class], dtype=torch.int64)
        self.names = [entry for _, entry in by_class]
        counts = torch.bincount(self.labels, minlength=len(self.classes)).tolist()
        empty = [name for name, count in zip(self.classes, counts, strict=True) if not count]
        if empty:
            raise InputError(f"{self.path} has no images of class {empty[0]!r}.")

    def omit(self, positions: Collection[int]) -> None:
        """Leave out the images at ``positions``.

        Raises:
            InputError: a class has no others.
        """
        omitted = set(positions)
        pairs = enumerate(zip(self.labels.tolist(), self.names, strict=True))
        self._use([pair for position, pair in pairs if position not in omitted])

    def __len__(self) -> int:
        return len(self.names)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_handle": None}

    def image(self, position: int) -> Tensor:
        """Return the decoded image at a position, (3, H, W) uint8, by :func:`kdlab.data.pixels.rgb`.

        Each process uses a separate zip handle.

        Raises:
            DamagedError: the image cannot be read or decoded.
            InputError: its pixels have no defined 8-bit values.
        """
        name = self.names[position]
        try:
            return pixels.rgb(self._read(name))
        except pixels.DamagedError as error:
            raise pixels.DamagedError(f"The image {name!r} of {self.path} {error}") from error
        except InputError as error:
            raise InputError(f"The image {name!r} of {self.path} {error}") from error

    def _read(self, name: str) -> bytes:
        """Return the content of a file, of no more bytes than a zip file claims for it."""
        try:
            if not self.zipped:
                if not (self.path / name).is_file():
                    raise OSError("it is a broken link, or not a file")
                return (self.path / name).read_bytes()
            archive = self._archive()
            with archive.open(self.prefix + name) as entry:
                return entry.read(archive.getinfo(self.prefix + name).file_size + 1)
        except Exception as error:  # zipfile raises zlib's, its own and builtin exceptions
            raise pixels.DamagedError(f"cannot be read: {error}.") from error

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


def splits(root: Path, class_order: ClassOrder = None) -> dict[str, Tree]:
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
            trees[name] = Tree(paths[0], class_order)
    if "train" not in trees:
        raise InputError(f"{str(root)!r} has neither a folder 'train' nor a file 'train.zip'.")
    for name, tree in trees.items():
        differing = sorted(set(tree.classes) ^ set(trees["train"].classes))
        if differing:
            raise InputError(f"The splits 'train' and {name!r} differ in classes: {', '.join(differing[:5])}.")
    return trees


def ordered(names: Collection[str], order: ClassOrder = None) -> list[str]:
    """Return the names of classes in the order of their labels.

    Args:
        names: the names.
        order: ``"text"``, as in torchvision's ``ImageFolder``; ``"number"``, where 2 precedes 10, as in timm; all names
            in another order; or ``None`` for ``"text"`` if the names are not numbers in another order than as text.

    Raises:
        InputError: ``None`` for such numbers, or a list of other names.

    >>> ordered(["10", "9", "011"], "number")
    ['9', '10', '011']
    """
    if order is not None and not isinstance(order, str):
        if sorted(order) != sorted(names):
            differing = sorted(set(order) ^ set(names)) or sorted(order)
            raise InputError(
                f"class_order must name each class folder once; it differs in {', '.join(differing[:5])}.",
                key="data.class_order",
            )
        return list(order)
    if order is not None:
        check_word("class_order", order, ("text", "number"))
    text, number = sorted(names), sorted(names, key=_numerically)
    around = {re.sub(r"\d+", "", name, count=1) for name in names}  # class1, class2, ... are numbers too
    if order is None and text != number and len(around) == 1 and not re.search(r"\d", around.pop()):
        raise InputError(
            f"The class folders are numbers, whose order as text ({', '.join(text[:4])}, ...) is not that of the "
            f"numbers ({', '.join(number[:4])}, ...): choose what the networks' outputs mean with class_order='number' "
            "(as in timm) or class_order='text' (as in torchvision's ImageFolder).",
            key="data.class_order",
        )
    return number if order == "number" else text


def _numerically(name: str) -> tuple[list[tuple[str, int]], str]:
    """Return a key that sorts runs of digits by their number."""
    return [(text, int(digits or -1)) for text, digits in re.findall(r"(\D*)(\d*)", name)], name


def _walk(path: Path) -> Iterable[str]:
    """Yield every folder (with a trailing slash) and file under ``path``, relative to it; links are followed.

    Raises:
        InputError: two paths lead to one folder, as in a circle of links, or a folder cannot be listed.
    """

    def refuse(error: OSError) -> None:
        raise InputError(f"The folder {error.filename!r} cannot be listed: {error.strerror}.")

    places: dict[str, str] = {}
    for folder, folders, files in os.walk(path, onerror=refuse, followlinks=True):
        inside = Path(folder).relative_to(path)
        if (first := places.setdefault(os.path.realpath(folder), folder)) != folder:
            raise InputError(
                f"{first!r} and {folder!r} are one folder, whose images would count twice: remove the link."
            )
        yield from (f"{(inside / name).as_posix()}/" for name in folders)
        yield from ((inside / name).as_posix() for name in files)


def _entries(path: Path) -> list[str]:
    """Return the entries of a zip file.

    Raises:
        InputError: the file is damaged, or an entry occurs twice, leads out of the folder or is too large.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except Exception as error:  # struct's, zipfile's and builtin exceptions
        raise InputError(f"{path} is not a readable zip file ({error}).") from error
    for name, count in Counter(entry.filename for entry in entries).items():
        parts = name.split("/")
        if not parts[0] or ".." in parts or "\\" in name or re.match("[A-Za-z]:", name):
            raise InputError(
                f"{path} has the entry {name!r}, which is no path below its folder ('/' between names): pack it again."
            )
        if count > 1:
            raise InputError(f"{path} has {count} entries {name!r}: pack it again with one.")
    for entry in entries:
        if entry.file_size > LARGEST:
            raise InputError(
                f"{path} has the entry {entry.filename!r} of {entry.file_size} bytes, more than any image has "
                f"({LARGEST}): remove it."
            )
    return [entry.filename for entry in entries]


def _is_image(entry: str) -> bool:
    return entry[-1:] != "/" and PurePosixPath(entry).suffix.lower() in SUFFIXES


def _hidden(entry: str) -> bool:
    """Return whether an entry is a hidden file or macOS metadata."""
    return any(part.startswith(".") or part == "__MACOSX" for part in entry.split("/"))


def _metadata(entry: str) -> bool:
    """Return whether a hidden entry is macOS metadata, which has the suffix of the image that it describes."""
    return "__MACOSX" in entry.split("/") or PurePosixPath(entry).name.startswith("._")
