"""Fingerprints of what a training batch depends on beyond (epoch, index): the key of cached outputs."""

from __future__ import annotations

import ast
import hashlib
import inspect
import sys
import textwrap
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from kdlab.data.image_tree import Tree
from kdlab.errors import InputError

# The methods that produce or change a training batch.
METHODS = (
    *("augment", "prepare", "shown", "train_dataloader"),
    *("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer"),
)


def of_images(images: Tensor, rows: Tensor | None) -> str:
    """Return the SHA-256 of the images (N, ...) at ``rows`` in that order, hexadecimal."""
    digest = hashlib.sha256(repr((images.dtype, tuple(images.shape[1:]))).encode())
    positions = torch.arange(len(images)) if rows is None else rows
    for start in range(0, len(positions), 4096):
        digest.update(images[positions[start : start + 4096]].numpy().data)
    return digest.hexdigest()


def of_tree(tree: Tree, rows: Tensor) -> str:
    """Return the SHA-256 of names, sizes and modification times of a split's images at ``rows``, hexadecimal."""
    digest = hashlib.sha256(repr(tree.stamps(rows.tolist())).encode())
    return digest.hexdigest()


def of_code(*modules: ModuleType) -> str:
    """Return the SHA-256 of the code of ``modules`` without docstrings and comments, hexadecimal."""
    return hashlib.sha256("\n".join(code_of(inspect.getsource(module)) for module in modules).encode()).hexdigest()


def code_of(source: str) -> str:
    """Return Python source without docstrings, comments and formatting."""
    tree = ast.parse(textwrap.dedent(source))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body:
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and type(first.value.value) is str:
                node.body = node.body[1:]
    return ast.unparse(tree)


def of_object(instance: object) -> dict[str, str]:
    """Return class, source and attributes of an object whose behavior depends on nothing else.

    Raises:
        InputError: the source cannot be read, or an attribute has no repr of its own.
    """
    kind = type(instance)
    name = f"{kind.__module__}.{kind.__qualname__}"
    attributes = repr(sorted(vars(instance).items()))
    try:
        code = hashlib.sha256(code_of(inspect.getsource(kind)).encode()).hexdigest()
    except (OSError, TypeError) as error:
        raise InputError(
            f"The source of {name} cannot be read, so its outputs cannot be cached: define it in a file."
        ) from error
    if " at 0x" in attributes:
        raise InputError(f"{name} has attributes that say nothing of themselves ({attributes[:80]}): give them a repr.")
    return {"class": name, "code": code, "attributes": attributes}


def of_views(views: Mapping[str, Any], mixing: object) -> dict[str, dict[str, str]]:
    """Return what the views of a training batch depend on, see :func:`of_object`.

    Raises:
        InputError: the batch is mixed, or a view shows other samples than its row's.
    """
    if mixing is not None:
        raise InputError(
            "A teacher's output on a mixed image is not a function of the sample, so it cannot be cached: drop "
            "teacher_cache or data.mixing."
        )
    for name, view in views.items():
        if not view.of_the_sample:
            raise InputError(
                f"The view {name!r} ({type(view).__name__}) of a sample shows other samples too, so the teacher's "
                "output cannot be cached per sample: drop teacher_cache or the view."
            )
    return {name: of_object(view) for name, view in views.items()}


def refuse_unknown(data: object, base: type, methods: Sequence[str] = METHODS) -> None:
    """Raise an error if batches pass through a method that is not kdlab's and that no ``fingerprint`` covers.

    Args:
        data: an instance of ``base``.
        base: kdlab's class, whose methods are covered.
        methods: names of the methods.

    Raises:
        InputError: there is such a method.
    """
    classes = type(data).__mro__
    for name in methods:
        owner = next((kind for kind in classes if name in vars(kind)), base)
        covered = any("fingerprint" in vars(kind) for kind in classes[: classes.index(owner) + 1])
        known = owner.__module__.split(".")[0] in ("kdlab", "pytorch_lightning")
        if name in vars(data) or not (known or covered):
            raise InputError(
                f"{type(data).__name__} has its own {name}(), which may draw at random, and no fingerprint() covers "
                "it: define fingerprint() beside it (a dict of all that it depends on besides epoch and index), or "
                "drop teacher_cache."
            )


def library(name: str) -> str:
    """Return the version of a library; empty if it is not imported."""
    return str(getattr(sys.modules.get(name), "__version__", ""))
