"""Folders of images, one folder per class, as directories or zip files."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, cast

from torch import Tensor
from torch.utils.data import Dataset

from kdlab.data import counter_rng, decoding, pixels
from kdlab.data.decoding import SizesDifferError, Streamed, decoded, omit_damaged
from kdlab.data.fingerprint import library, of_code, of_tree, of_views, refuse_unknown
from kdlab.data.image_tree import Tree, splits
from kdlab.data.images import ImageData
from kdlab.data.in_memory import Images
from kdlab.data.loader import Loader
from kdlab.errors import InputError, check_word
from kdlab.outputs import Batch

IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


class ImageFolder(ImageData):
    """Images in class folders: ``root/train/<class>/*.png``, with ``val`` and ``test`` beside ``train``.

    Each split is a directory, or a zip file (``train.zip`` with ``train/<class>/...`` or ``<class>/...`` inside). A
    class's index is its folder's place in alphabetical order, see ``class_order``. Without ``val``, validation runs on
    ``test``; without ``test``, test runs on ``val``. Images of one size that fit ``memory_limit`` are decoded once and
    augmented as in :class:`ImageData` (``padding``, ``flip``). Others are streamed: decoded in ``num_workers``
    processes, with a random resized crop (and ``flip``) in training and resize and center crop otherwise. Images are
    read as 8-bit RGB, upright by their EXIF orientation (which torchvision's ``ImageFolder`` ignores), and of an
    animation the first frame. Linked folders are read; files that are hidden or no images are not, and are counted in a
    warning.

    Args:
        root: folder with the splits.
        mean: of each channel, in units of the full range; ``None`` for ImageNet's.
        std: likewise.
        flip: flip half of the training images horizontally.
        size: height and width of streamed images, in pixels.
        resize: length of a streamed image's shorter side before its center crop, in pixels.
        in_memory: keep decoded images in memory; ``None`` to do so if they have one size and fit.
        memory_limit: bytes that all decoded splits may take together.
        num_workers: processes that decode streamed images.
        class_order: order of the class folders: ``"text"``; ``"number"``, where 2 precedes 10; or all their names in
            another order, such as a teacher's. ``None`` for ``"text"``, unless the names are numbers and the order
            differs.
        on_error: ``"raise"`` an error at the first damaged image that is read, or ``"skip"`` all of them: every image
            is then decoded once in ``setup``, and those that fail are left out and counted in a warning.
        cache: folder in which images in memory stay decoded for later runs; ``None`` to decode them each time.
        options: further arguments of :class:`ImageData`.

    Attributes:
        classes: names of the classes; like ``num_classes`` and ``shape``, known after ``setup``.

    Raises:
        InputError: in ``setup``: a folder is missing, empty or linked twice, a zip file is unsafe, splits differ in
            their classes, the order of numbered classes is open, an image cannot be decoded or has no defined 8-bit
            values (32 bits, floating point), images differ in size with ``in_memory=True``, or ``padding`` is set for
            streamed images.
    """

    def __init__(
        self,
        root: str,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        flip: bool = True,
        size: int = 224,
        resize: int = 256,
        in_memory: bool | None = None,
        memory_limit: int = 1 << 30,
        num_workers: int = 0,
        class_order: Literal["text", "number"] | list[str] | None = None,
        on_error: Literal["raise", "skip"] = "raise",
        cache: str | None = "runs/decoded",
        **options: Any,
    ) -> None:
        super().__init__(mean=mean or IMAGENET[0], std=std or IMAGENET[1], flip=flip, **options)
        self.root = root
        self.size = size
        self.resize = resize
        self.in_memory = in_memory
        self.memory_limit = memory_limit
        self.workers = num_workers
        self.class_order = class_order
        check_word("on_error", on_error, ("raise", "skip"))
        self.on_error = on_error
        self.cache = cache
        self.classes: list[str] = []
        self._trees: dict[str, Tree] = {}
        self._rows: dict[str, Tensor | None] = {}
        self._decoded: dict[str, Tensor] = {}
        self._keeps_decoded = False

    def setup(self, stage: str | None = None) -> None:
        """List the splits once; then decode those that this stage needs, if they are kept in memory."""
        if not self._trees:
            available = self.trees()
            for tree in available.values() if self.on_error == "skip" else ():
                omit_damaged(tree)
            self._list(available)
        needed = {"fit": ["train", "val"], "validate": ["val"], "test": ["test"], "predict": ["test"]}
        if self._keeps_decoded:
            self._decode(needed.get(stage or "", ["train", "val", "test"]))
        if self._keeps_decoded:
            self.quiet()
            ready = [name for name in self._trees if self._path(name) in self._decoded]
        elif self.padding:
            raise InputError(
                f"padding={self.padding} is for images in memory, but those of {self.root!r} are streamed: drop it."
            )
        else:
            self.shape = (3, self.size, self.size)
            self.num_workers = self.workers
            ready = list(self._trees)
        self._sets = {name: self._set(name) for name in ready}

    def trees(self) -> dict[str, Tree]:
        """Return the images of each split."""
        return splits(Path(self.root), self.class_order)

    def _list(self, available: dict[str, Tree]) -> None:
        """Choose each split's tree and rows, and the sizes and classes that follow."""
        train = available["train"]
        rows, held_out = self.training_rows(train.labels)
        if self.validation:
            trees = {"train": train, "val": train, "test": available.get("test", available.get("val", train))}
        elif len(available) == 1:
            trees = self.without_evaluation(train)
        else:
            val, test = available.get("val"), available.get("test")
            trees = {"train": train, "val": cast(Tree, val or test), "test": cast(Tree, test or val)}
        self._rows = {name: held_out if tree is train else None for name, tree in trees.items()}
        self._rows["train"] = None if len(rows) == len(train) else rows
        self.sizes = {name: len(tree) for name, tree in trees.items()}
        self.sizes |= {name: len(part) for name, part in self._rows.items() if part is not None}
        self.classes = train.classes
        self.num_classes = len(train.classes)
        distinct = {tree.path: tree for tree in trees.values()}.values()
        firsts = [tree.image(0).shape for tree in distinct]
        self.shape = cast(Any, tuple(firsts[0]))
        fit = len(set(firsts)) == 1 and sum(map(len, distinct)) * firsts[0].numel() <= self.memory_limit
        self._keeps_decoded = fit if self.in_memory is None else self.in_memory
        self._trees = trees

    def without_evaluation(self, train: Tree) -> dict[str, Tree]:
        """Return the splits of a data set that has neither "val" nor "test"."""
        raise InputError(f"{self.root!r} has neither 'val' nor 'test'; add one, or hold images out with validation=...")

    def _decode(self, names: list[str]) -> None:
        try:
            for name in [name for name in names if name in self._trees]:
                path = self._path(name)
                if path not in self._decoded:
                    self._decoded[path] = decoded(self._trees[name], self.shape[1:], self.cache)
        except SizesDifferError:
            if self.in_memory or self._sets:  # requested, or other splits are in memory already
                raise
            self._decoded.clear()
            self._keeps_decoded = False

    def _set(self, name: str) -> Dataset[Batch]:
        """Return the data set of a split."""
        tree, rows = self._trees[name], self._rows[name]
        if not self._keeps_decoded:
            return Streamed(tree, rows, self.size, self.resize, name == "train", self.flip, self.augmentation_seed)
        return Images(self._decoded[self._path(name)], tree.labels, rows)

    def file_names(self, split: str) -> list[str]:
        """Return the file of each sample, from the class folder on; see :meth:`ImageData.file_names`."""
        tree, rows = self._trees[split], self._rows[split]
        return list(tree.names) if rows is None else [tree.names[row] for row in rows.tolist()]

    def _path(self, name: str) -> str:
        return str(self._trees[name].path)

    @property
    def streams(self) -> bool:
        """Return whether the training set augments its images as it reads them."""
        return not self._keeps_decoded

    def train_dataloader(self) -> Loader:
        """Return a loader of the training split, shuffled anew each epoch."""
        train = self._split("train")
        if isinstance(train, Streamed):
            train.distinct_epochs = self.distinct_epochs
        return super().train_dataloader()

    def fingerprint(self) -> dict[str, Any]:
        """Return the fingerprint; streamed images count by their names, sizes and modification times."""
        train = self._split("train")
        if type(train) is not Streamed:
            return super().fingerprint()
        refuse_unknown(self, ImageFolder)
        return {
            "images": of_tree(train.tree, train.rows),
            "normalized": [self.mean, self.std],
            "augmented": [self.size, self.flip, self.augmentation_seed],
            "code": of_code(decoding, pixels, counter_rng),
            "views": of_views(self.all_views, self.mixing),
            "libraries": [library("torchvision"), library("PIL")],
        }

    def augment(self, images: Tensor, index: Tensor, epoch: int) -> Tensor:
        """Return the training images (B, 3, H, W) as ``epoch`` augments them; streamed images are augmented already."""
        return super().augment(images, index, epoch) if self._keeps_decoded else images
