"""Images without labels, for distillation of backbones."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from kdlab.data.decoding import Streamed
from kdlab.data.folder import IMAGENET, ImageFolder
from kdlab.data.image_sources import joined
from kdlab.data.image_tree import Tree
from kdlab.data.preprocessing import Preprocessing
from kdlab.errors import InputError


class UnlabeledImages(ImageFolder):
    """Images without classes, such as your own photos; a training on them has no task loss.

    ``root`` is a folder, read with all its subfolders whatever their names; a zip file; a ``.txt`` file with the path
    of an image in each line; a Parquet file with encoded images in a column (as Hugging Face's datasets write them); a
    folder that litdata's ``optimize`` wrote; a folder of zip or Parquet files; or a list of these. Damaged, hidden and
    odd files, memory, decoding and augmentation are as for :class:`ImageFolder`. Every label is -100, which PyTorch's
    losses ignore.

    Mean, standard deviation and size that are not given are those that the student says it was trained with (timm's
    ``pretrained_cfg``), or ImageNet's and 224.

    Args:
        root: where the images are.
        mean: of each channel, in units of the full range.
        std: likewise.
        size: height and width of streamed images, in pixels.
        resize: length of a streamed image's shorter side before its center crop; 8/7 of ``size`` if not given.
        column: column of Parquet files, and key of litdata's samples.
        options: further arguments of :class:`ImageFolder`, such as ``validation``, the number of images held out, on
            which the student is compared with its teachers.

    Raises:
        InputError: in ``setup``: there are no images, or a file cannot be read.
    """

    def __init__(
        self,
        root: str | list[str],
        mean: list[float] | None = None,
        std: list[float] | None = None,
        size: int | None = None,
        resize: int | None = None,
        column: str = "image",
        **options: Any,
    ) -> None:
        if (mean is None) != (std is None):
            raise InputError("Give both mean and std of the data, or neither.", key="data.mean")
        if wrong := next((name for name in ("omit", "class_order") if options.get(name)), None):
            raise InputError(f"{wrong} is for images with classes.", key=f"data.{wrong}")
        self.roots = [root] if isinstance(root, str) else list(root)
        self._adopts = mean is None, size is None
        self._resize = resize
        size = size or 224
        super().__init__(", ".join(self.roots), mean, std, size=size, resize=resize or size * 8 // 7, **options)
        self.column = column

    def adopt(self, network: nn.Module) -> None:
        """Take mean, standard deviation and size, where they are not given, from what the student says."""
        about = Preprocessing.of(network)
        normalizes, resizes = self._adopts
        if normalizes:
            self.mean, self.std = IMAGENET if about is None or about.mean is None else (about.mean, about.std)  # type: ignore[assignment]
        if resizes and about is not None and isinstance(about.size, tuple):
            self.size = about.size[0]
            self.resize = self._resize or self.size * 8 // 7
            for split in self._sets.values():
                if isinstance(split, Streamed):
                    split.size, split.resize = self.size, self.resize
                    self.shape = (3, self.size, self.size)

    def trees(self) -> dict[str, Tree]:
        """Return the images; validation holds some out."""
        if not self.roots:
            raise InputError("root names no images.", key="data.root")
        return {"train": joined(self.roots, self.column)}

    def training_rows(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the positions of the training and of the held-out samples."""
        return super().training_rows(torch.zeros_like(labels))

    def without_evaluation(self, train: Tree) -> dict[str, Tree]:
        """Return the training images alone."""
        return {"train": train}

    def val_dataloader(self) -> Any:
        """Return a loader of the images that are held out; none without ``validation``."""
        return super().val_dataloader() if self.validation else self._nothing()

    def test_dataloader(self) -> Any:
        """Return a loader of the images that are held out."""
        return super().test_dataloader() if self.validation else self._nothing()

    def _nothing(self) -> list[Any]:
        """Return no loader, which Lightning takes as a mistake."""
        warnings.filterwarnings("ignore", message="Total length of `list` across ranks is zero")
        return []

    def predict_dataloader(self) -> Any:
        """Return a loader of the images that are held out, else of all."""
        return self._eval_loader("val" if self.validation else "train")
