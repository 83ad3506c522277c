"""What a training batch depends on beyond (epoch, index), so that what is computed from it can be kept and found."""

from __future__ import annotations

import hashlib
import inspect
import sys
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from kdlab.data.image_tree import Tree
from kdlab.errors import InputError

# Whatever a training batch passes through on its way to the networks.
METHODS = (
    *("augment", "prepare", "shown", "train_dataloader"),
    *("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer"),
)


def of_images(images: Tensor, rows: Tensor | None) -> str:
    """SHA-256 of the images (N, ...) at ``rows``, in that order; hexadecimal."""
    digest = hashlib.sha256(repr((images.dtype, tuple(images.shape[1:]))).encode())
    taken = torch.arange(len(images)) if rows is None else rows
    for start in range(0, len(taken), 4096):
        digest.update(images[taken[start : start + 4096]].numpy().data)
    return digest.hexdigest()


def of_tree(tree: Tree, rows: Tensor) -> str:
    """SHA-256 of the names, sizes and times of change of a split's images at ``rows``; hexadecimal."""
    digest = hashlib.sha256(repr(tree.stamps(rows.tolist())).encode())
    return digest.hexdigest()


def of_code(*modules: ModuleType) -> str:
    """SHA-256 of the source of ``modules``: another definition is another fingerprint; hexadecimal."""
    return hashlib.sha256("".join(map(inspect.getsource, modules)).encode()).hexdigest()


def of_object(each: object) -> dict[str, str]:
    """Class, source and attributes of an object that is a function of them.

    Raises:
        InputError: they cannot be read.
    """
    kind = type(each)
    name = f"{kind.__module__}.{kind.__qualname__}"
    attributes = repr(sorted(vars(each).items()))
    try:
        code = hashlib.sha256(inspect.getsource(kind).encode()).hexdigest()
    except (OSError, TypeError) as error:
        raise InputError(f"The source of {name} cannot be read, so what it computes cannot be kept.") from error
    if " at 0x" in attributes:
        raise InputError(f"{name} has attributes that say nothing of themselves ({attributes[:80]}): give them a repr.")
    return {"class": name, "code": code, "attributes": attributes}


def of_views(views: Mapping[str, Any], mixing: object) -> dict[str, dict[str, str]]:
    """What the views of a training batch depend on, each as of :func:`of_object`.

    Raises:
        InputError: the batch is mixed, or a view shows other samples than that of its row.
    """
    if mixing is not None:
        raise InputError(
            "What a teacher says of a mixed image is not a function of the sample, so it cannot be kept: drop "
            "teacher_cache, or data.mixing."
        )
    for name, view in views.items():
        if not view.of_the_sample:
            raise InputError(
                f"The view {name!r} ({type(view).__name__}) of a sample shows other samples too, so what a teacher "
                "says of it cannot be kept for the sample: drop teacher_cache, or the view."
            )
    return {name: of_object(view) for name, view in views.items()}


def refuse_unknown(data: object, base: type, methods: Sequence[str] = METHODS) -> None:
    """Refuse an object whose batches pass through a method that is not of kdlab and that no ``fingerprint`` covers.

    Args:
        data: an instance of ``base``.
        base: the class of kdlab that knows its own methods.
        methods: the names.

    Raises:
        InputError: as said.
    """
    line = type(data).__mro__
    for name in methods:
        owner = next((kind for kind in line if name in vars(kind)), base)
        speaks = any("fingerprint" in vars(kind) for kind in line[: line.index(owner) + 1])
        known = owner.__module__.split(".")[0] in ("kdlab", "pytorch_lightning")
        if name in vars(data) or not (known or speaks):
            raise InputError(
                f"{type(data).__name__} has its own {name}(), which may draw at random, and nothing says what it "
                f"depends on: define fingerprint() beside it (a dict of all that it depends on besides epoch and "
                "index), or drop teacher_cache."
            )


def library(name: str) -> str:
    """The version of an imported library; empty where it is not imported."""
    return str(getattr(sys.modules.get(name), "__version__", ""))
