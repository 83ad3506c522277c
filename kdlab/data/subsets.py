"""Stratified subsets of labeled data sets, fixed by a seed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kdlab.data import counter_rng
from kdlab.errors import InputError


def stratified(labels: Tensor, count: int, seed: int) -> Tensor:
    """Return the positions of a stratified subset of ``count`` samples, ascending.

    Each class gets its proportion of ``count``, rounded down; the rest goes to the classes with the largest remainders.
    Within a class the samples are drawn by ``seed``.

    Args:
        labels: (N,) int64.
        count: number of samples, 0 to N.
        seed: of the draw.

    Returns:
        (count,) int64.
    """
    sizes = torch.bincount(labels)
    exact = sizes * count
    quota = exact // len(labels)
    remainder = exact % len(labels)
    quota[torch.argsort(remainder, descending=True, stable=True)[: count - int(quota.sum())]] += 1
    shuffled = torch.argsort(counter_rng.bits(seed, 0, torch.arange(len(labels)), counter_rng.SUBSET), stable=True)
    by_class = shuffled[torch.argsort(labels[shuffled], stable=True)]
    starts = torch.cumsum(sizes, 0) - sizes
    rank = torch.arange(len(labels)) - starts.repeat_interleave(sizes)
    return by_class[rank < quota.repeat_interleave(sizes)].sort().values


def training_rows(
    labels: Tensor, validation: int = 0, train_size: int | None = None, omit: Sequence[int] = (), seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Return the positions of the training samples and of those held out for validation, each ascending.

    Args:
        labels: (N,) int64, of the whole training set.
        validation: number of samples held out, stratified.
        train_size: number of training samples, stratified, out of the rest; ``None`` for all.
        omit: classes without training samples; the held-out samples keep them.
        seed: of both draws.

    Returns:
        Two int64 tensors, (train,) and (validation,).

    Raises:
        InputError: a number is larger than the number of samples, ``omit`` names a class without samples, or no
            training sample is left.
    """
    if not 0 <= validation < len(labels):
        raise InputError(f"validation={validation} leaves no training images: the training set has {len(labels)}.")
    held_out = stratified(labels, validation, seed)
    in_training = torch.ones(len(labels), dtype=torch.bool)
    in_training[held_out] = False
    if omit:
        unknown = sorted(set(omit) - set(labels.tolist()))
        if unknown:
            raise InputError(f"omit names the classes {unknown}, which the training set does not have.")
        in_training &= ~torch.isin(labels, torch.tensor(list(omit)))
    rows = in_training.nonzero().flatten()
    if not len(rows):
        raise InputError("omit removes every training image.")
    if train_size is not None:
        if not 0 < train_size <= len(rows):
            raise InputError(
                f"train_size={train_size} must be from 1 to the {len(rows)} training images that are left."
            )
        rows = rows[stratified(labels[rows], train_size, seed)]
    return rows, held_out


def check_labels(labels: Tensor, num_classes: int, split: str) -> None:
    """Raise an InputError if a split is empty or has labels outside 0 to ``num_classes`` - 1."""
    if not len(labels):
        raise InputError(f"The {split} set has no images.")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        raise InputError(f"The {split} set has labels from {low} to {high}, outside its {num_classes} classes.")
