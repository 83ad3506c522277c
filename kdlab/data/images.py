"""The base class of kdlab's image data: full batches in a reproducible order, augmented on the device."""

from __future__ import annotations

import hashlib
import sys
import warnings
from collections.abc import Mapping
from typing import Any, ClassVar, cast

from torch import Tensor

from kdlab.data import counter_rng
from kdlab.data.augment import augment, normalize
from kdlab.data.fingerprint import library, of_code, of_images, of_views, refuse_unknown
from kdlab.data.in_memory import Images
from kdlab.data.loader import Loader
from kdlab.data.mixing import Mixing, mixed_labels
from kdlab.data.ordered import OrderedData
from kdlab.data.paired_views import LastBatch, SecondView, with_companions
from kdlab.data.samplers import Shuffled
from kdlab.data.subsets import check_labels, training_rows
from kdlab.data.views import View
from kdlab.errors import InputError
from kdlab.outputs import Batch
from kdlab.outputs.containers import inputs_of, with_inputs


class ImageData(OrderedData):
    """The base class of image data: batches of (images, labels, index), split, ordered and augmented by ``seed``.

    Batches leave the loader as uint8 and are augmented (in training only) and normalized on the device. Order, crops
    and flips are functions of (seed, epoch, index), so they do not depend on the number of processes, on workers, or on
    whether a run was killed and resumed. A batch's ``index`` is the sample's position among the samples in use of its
    split, 0 to ``sizes[split]`` - 1. Without ``validation``, validation runs on the test set, as in the published
    benchmarks; then do not select anything (an epoch, a weight) by its metrics.

    Args:
        mean: of each channel, in units of the full range.
        std: of each channel, in the same units.
        batch_size: samples in a training batch, over all processes together, at most as many as the training set has.
        eval_batch_size: the same for validation, test and prediction.
        seed: seed of the order, the augmentation and the subsets.
        padding: pixels of zeros around an image before the random crop, which shifts it by up to as many pixels.
        flip: flip half of the training images horizontally.
        validation: number of training images held out for validation, stratified; 0 to validate on the test set.
        train_size: number of training images, stratified; ``None`` for all remaining ones.
        omit: classes without training images; validation and test keep them.
        views: further views of the training images, by name, for losses that read them: ``{"strong": RandAugment()}``.
        augmentation_seed: seed of augmentation and views only, so that runs with different orders see the same images;
            ``None`` for ``seed``.
        distinct_epochs: number of epochs after which the augmentation repeats; ``None`` for never. A small number is
            another method ("fixed views"), to be reported as such.
        mixing: mixture of pairs of training images: ``MixUp()``, ``CutMix()``. Labels are then probabilities (B,
            num_classes). It excludes views, which show the images before they are mixed.
        drop_last: leave out the last training batch of an epoch if it is smaller; other samples each epoch.

    Attributes:
        num_classes: number of classes.
        shape: (C, H, W) of an image.
        sizes: number of samples of "train", "val" and "test"; known after ``setup``.
        host_index: the index of the last batch sent to a device, on the host: reading it needs no synchronization.

    Raises:
        InputError: views with mixing, or a batch size below 1; in ``setup``: labels outside the classes, a subset that
            cannot be drawn, or a batch size above the size of the training set; in the dataloaders: a batch size that
            is not divisible by the number of processes.
    """

    num_classes: int
    shape: tuple[int, int, int]
    samples: ClassVar[str] = "images"

    def __init__(
        self,
        mean: list[float],
        std: list[float],
        batch_size: int = 64,
        eval_batch_size: int = 512,
        seed: int = 0,
        padding: int = 0,
        flip: bool = False,
        validation: int = 0,
        train_size: int | None = None,
        omit: list[int] | None = None,
        views: dict[str, View] | None = None,
        augmentation_seed: int | None = None,
        distinct_epochs: int | None = None,
        mixing: Mixing | None = None,
        drop_last: bool = False,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, seed, drop_last)
        self.mean = list(mean)
        self.std = list(std)
        self.padding = padding
        self.flip = flip
        self.validation = validation
        self.train_size = train_size
        self.omit = list(omit or [])
        self.views = dict(views or {})
        self.augmentation_seed = seed if augmentation_seed is None else augmentation_seed
        if distinct_epochs is not None and distinct_epochs < 1:
            raise InputError(f"distinct_epochs must be at least 1, or None, not {distinct_epochs}.")
        self.distinct_epochs = distinct_epochs
        self.mixing = mixing
        self._requested: dict[str, View] = {}
        self.provide({})
        self.host_index: Tensor | None = None

    def provide(self, views: Mapping[str, View]) -> None:
        """Also make these views, until the next call; a view of the same name in ``self.views`` takes precedence.

        Raises:
            InputError: the data mixes images.
        """
        self._requested = dict(views)
        if self.mixing is not None and self.all_views:
            raise InputError(
                f"The views {', '.join(map(repr, self.all_views))} show images before they are mixed, which do not "
                "match the mixed labels: drop data.mixing, or what reads the views."
            )

    @property
    def all_views(self) -> dict[str, View]:
        """Return the views of training batches by name: the requested ones and the user's."""
        return {**self._requested, **self.views}

    @property
    def streams(self) -> bool:
        """Return whether the training set augments its images as it reads them."""
        return False

    def read(self, train: bool) -> tuple[Tensor, Tensor]:
        """Return the images, (N, C, H, W) uint8, and labels, (N,) int64, of the training or the test set."""
        raise NotImplementedError(f"{type(self).__name__} must define read().")

    def file_names(self, split: str) -> list[str]:
        """Return the file of each sample of "train", "val" or "test" by its index; empty where there are no files."""
        return []

    def setup(self, stage: str | None = None) -> None:
        """Read the data and draw the subsets, once."""
        if not self._sets:
            self.quiet()
            images, labels = self.read(train=True)
            test = Images(*self.read(train=False))
            check_labels(labels, self.num_classes, "training")
            check_labels(test.labels, self.num_classes, "test")
            rows, held_out = self.training_rows(labels)
            self._sets = {
                "train": Images(images, labels, None if len(rows) == len(labels) else rows),
                "val": Images(images, labels, held_out) if self.validation else test,
                "test": test,
            }
            self.sizes = {name: len(cast(Any, split)) for name, split in self._sets.items()}

    def quiet(self) -> None:
        """Silence Lightning's advice to use workers, which only slow down batches that are one gather in memory."""
        warnings.filterwarnings("ignore", message=r"The '\w+_dataloader' does not have many workers")

    def training_rows(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the positions of the training and of the held-out samples, by the module's arguments."""
        return training_rows(labels, self.validation, self.train_size, self.omit, self.seed)

    def train_dataloader(self) -> Loader:
        """Return a loader of the training split, shuffled anew each epoch."""
        views = self.all_views
        dataset = with_companions(
            self._split("train"), views, self.streams, self.augmentation_seed, self.distinct_epochs
        )
        batches = self.train_loader(dataset)
        cast(Shuffled, batches.sampler).remembers = any(isinstance(view, LastBatch) for view in views.values())
        return batches

    def prepare(self, batch: Batch, epoch: int | None = None) -> Batch:
        """Return the batch for the networks: augmented as in ``epoch`` (``None``: not at all) and normalized.

        Args:
            batch: uint8 images (B, C, H, W), or images in floating point from 0 to 1, with labels and index.
            epoch: the epoch number.

        Returns:
            The batch with float32 images, and in training its views, on the same device.
        """
        images, raw_views = batch.inputs, batch.views or {}
        batch = batch._replace(views=None)
        if epoch is None or batch.index is None:
            return batch._replace(inputs=normalize(images, self.mean, self.std))
        epoch, seed = self.shown(epoch), self.augmentation_seed
        plain = batch._replace(inputs=self.augment(images, batch.index, epoch))
        views: dict[str, Tensor | Batch] = {}
        for name, view in self.all_views.items():
            raw = raw_views.get(name, batch if isinstance(view, SecondView) and not self.streams else None)
            shown = view.show(plain, cast("Batch | None", raw), self.augment, seed, epoch)
            views[name] = with_inputs(shown, normalize(inputs_of(shown), self.mean, self.std))
        if self.mixing is not None:
            mixed, mix = self.mixing(plain.inputs, batch.index, seed, epoch)
            plain = Batch(mixed, mixed_labels(batch.target, mix, self.num_classes), batch.index, mix=mix)
        return plain._replace(inputs=normalize(plain.inputs, self.mean, self.std), views=views or None)

    def augment(self, images: Tensor, index: Tensor, epoch: int) -> Tensor:
        """Return the training images (B, C, H, W) as ``epoch`` augments them, dtype unchanged."""
        return augment(images, index, self.augmentation_seed, epoch, self.padding, self.flip)

    @property
    def augments(self) -> bool:
        """Return whether a training image looks different from epoch to epoch."""
        return bool(self.padding or self.flip or self.streams or self.mixing is not None)

    def shown(self, epoch: int) -> int:
        """Return the number of the augmentation of ``epoch``."""
        return counter_rng.shown(epoch, self.distinct_epochs)

    def fingerprint(self) -> dict[str, Any]:
        """Return what the inputs of a training batch depend on besides :meth:`shown` of the epoch and the index.

        A subclass with other transforms must override this and add what they depend on.

        Raises:
            InputError: such a class does not, or a sample's inputs depend on other samples.
        """
        refuse_unknown(self, ImageData)
        train = self._split("train")
        if type(train) is not Images:
            raise InputError(
                f"The training set is a {type(train).__name__}, which has no known fingerprint: define fingerprint()."
            )
        return {
            "images": of_images(train.images, train.rows),
            "normalized": [self.mean, self.std],
            "augmented": [self.padding, self.flip, self.augmentation_seed],
            "code": of_code(sys.modules[augment.__module__], counter_rng),
            "views": of_views(self.all_views, self.mixing),
            "libraries": library("torchvision") if self.all_views else "",
        }

    def content(self) -> str:
        """Return a hash of all images and labels of all splits, in use or not, after ``setup``, hexadecimal."""
        hashes = sorted({cast(Any, split).content() for split in self._sets.values()})
        return hashlib.sha256(" ".join(hashes).encode()).hexdigest()[:12]

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Keep the index of the batch before the transfer; Lightning calls it."""
        self.host_index = Batch.of(batch).index
        return batch

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Batch:
        """Augment (in training) and normalize a batch on its device; Lightning calls it."""
        trainer = self.trainer
        if trainer is None:
            return self.prepare(Batch.of(batch))
        prepared = self.prepare(Batch.of(batch), trainer.current_epoch if trainer.training else None)
        # Lightning converts the dtype before the transfer, when these are integers.
        convert = trainer.precision_plugin.convert_input
        views = {name: with_inputs(view, convert(inputs_of(view))) for name, view in (prepared.views or {}).items()}
        return prepared._replace(inputs=convert(prepared.inputs), views=views or None)
