"""The handwritten digits of 8x8 pixels in scikit-learn: real data without a download."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kdlab.data.images import ImageData
from kdlab.data.subsets import stratified


class Digits(ImageData):
    """The 1,797 handwritten digits of scikit-learn: 1,297 for training and 500 for test, with a fixed split.

    Images are (1, 8, 8), rescaled from 0..16 to 0..255; 10 classes. The data set has no official split: this one is
    stratified and does not change with ``seed``. E. Alpaydin, C. Kaynak: Optical Recognition of Handwritten Digits, UCI
    Machine Learning Repository, 1998 (its test part).

    Args:
        options: further arguments of :class:`ImageData`.
    """

    num_classes = 10
    shape = (1, 8, 8)

    def __init__(self, **options: Any) -> None:
        super().__init__(mean=[0.3050], std=[0.3756], **options)

    def read(self, train: bool) -> tuple[Tensor, Tensor]:
        """Return the images, (N, 1, 8, 8) uint8, and labels, (N,) int64, of the training or the test set."""
        from sklearn.datasets import load_digits

        raw = load_digits()
        images = torch.from_numpy(raw.images).mul(255 / 16).round().to(torch.uint8)[:, None]
        labels = torch.from_numpy(raw.target).long()
        chosen = torch.zeros(len(labels), dtype=torch.bool)
        chosen[stratified(labels, 500, seed=0)] = True
        if train:
            chosen = ~chosen
        return images[chosen], labels[chosen]
