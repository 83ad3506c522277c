"""Errors of libraries while a config is built and run, as an InputError."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator, Sequence

from jsonargparse import ArgumentError
from lightning_fabric.utilities.exceptions import MisconfigurationException

from kdlab.config.class_paths import is_own_file
from kdlab.config.parser_errors import parser_error
from kdlab.errors import InputError, causes, failed_import, refusal_in
from kdlab.files import unwritable


def input_error(error: Exception, arguments: Sequence[str] = ()) -> InputError | None:
    """Return what a user has to change; ``None`` for any other error. ``arguments`` are those of the command line."""
    if refused := refusal_in(error):  # jsonargparse wraps what a constructor raises
        return refused
    if isinstance(error, ArgumentError):
        return failed_import(error) or parser_error(error, arguments)
    if isinstance(error, MisconfigurationException):  # the Trainer's: no GPU here, options that exclude each other
        return InputError(str(error).strip().splitlines()[0])
    if isinstance(error, ImportError | SyntaxError):  # in a file that the config names
        return failed_import(error)
    if isinstance(error, RuntimeError) and "conditioned on metric" in str(error):  # EarlyStopping's monitor
        return InputError(str(error).splitlines()[0], key="monitor")
    if type(error).__module__.startswith("wandb.errors"):
        text = str(error).strip().splitlines()[0].rstrip(".")
        return InputError(f"Weights & Biases: {text}. Without an account or network, set WANDB_MODE=offline.")
    return unwritable(error)


def construction_error(error: Exception) -> InputError | None:
    """Return what a constructor refuses; ``None`` where the user's own code fails, which is seen in the traceback."""
    *_, root = causes(error)
    frames = [frame for frame in traceback.extract_tb(root.__traceback__) if not frame.filename.startswith("<")]
    if not frames or is_own_file(frames[-1].filename):
        return None
    lines = str(root).strip().splitlines() or [type(root).__name__]
    where = f"{frames[-1].filename}, line {frames[-1].lineno}"
    return InputError(f"The config cannot be built: {type(root).__name__}: {lines[0]} ({where}).")


@contextlib.contextmanager
def about(key: str, value: str) -> Iterator[None]:
    """Name the option that an InputError is about."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{key}: {error}", key=key, value=value) from error
