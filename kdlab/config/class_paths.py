"""Class paths of a config: checked before anything that they name is called."""

from __future__ import annotations

import inspect
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, get_type_hints

import torch
from jsonargparse import set_parsing_settings
from jsonargparse.typing import register_type
from lightning_fabric.plugins import CheckpointIO, ClusterEnvironment
from pytorch_lightning import Callback, LightningDataModule
from pytorch_lightning.accelerators import Accelerator
from pytorch_lightning.loggers import Logger
from pytorch_lightning.plugins import LayerSync, Precision
from pytorch_lightning.profilers import Profiler
from pytorch_lightning.strategies import Strategy
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler

from kdlab.compat import shorten_help
from kdlab.errors import InputError, failed_import, nearest

KINDS = (
    *(nn.Module, torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler, Dataset, Sampler),
    *(Callback, Logger, LightningDataModule, Strategy, Accelerator, Profiler),
    *(Precision, LayerSync, CheckpointIO, ClusterEnvironment),
)
"""What a config may build; also classes of :data:`ROOMS`, and everything in the user's own files."""
ROOMS = ("data", "knowledge", "losses", "members", "models", "modules", "optimizers", "schedules", "teaching")
LOADERS = (
    "hub",
    "jit",
    "load",
    "multiprocessing",
    "package",
    "serialization",
    "utils.cpp_extension",
    "utils.model_zoo",
)
DENIED = (*sys.stdlib_module_names, *(f"torch.{name}" for name in LOADERS), "numpy.load", "pandas", "joblib", "dill")
"""What no config names, be it to call it or to pass it on: Python's own modules (commands, files), and pickles."""
INSTALLED = [Path(sysconfig.get_path(name)).resolve() for name in ("purelib", "platlib", "stdlib")]
INSTALLED += [Path(__file__).resolve().parents[1]]
"""Folders of code that is not the user's own: libraries and kdlab."""

# The parser imports no path below a denied one, nor an object that is defined below one, whatever path leads to it.
set_parsing_settings(import_path_denylist=[*DENIED])
shorten_help(12)  # nn.Module has hundreds of subclasses


def _tensor(values: Any) -> Tensor:
    """Return numbers as a float32 tensor, such as class weights."""
    return values if isinstance(values, Tensor) else torch.tensor(values, dtype=torch.float32)


register_type(Tensor, serializer=Tensor.tolist, deserializer=_tensor, fail_already_registered=False)


def check_config(value: Any, key: str = "") -> None:
    """Check a parsed config, of which nothing is built yet: its class paths, and that its whole numbers fit in 64 bits.

    Args:
        value: the config, or a part of it, as plain dicts and lists.
        key: dotted key of the part.

    Raises:
        InputError: a class path names no class of :data:`KINDS`, and no function that is annotated to return one.
    """
    if isinstance(value, Mapping):
        if isinstance(path := value.get("class_path"), str):
            check_class_path(path, key)
        for name, inner in value.items():
            check_config(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for inner in value:
            check_config(inner, key)
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise InputError(f"{key} is {value:.3g}: whole numbers have at most 64 bits.", key=key)


def instantiate(value: Any) -> Any:
    """Build the objects that class paths and their arguments, nested in dicts and lists, name."""
    if isinstance(value, list):
        return [instantiate(inner) for inner in value]
    if not isinstance(value, Mapping):
        return value
    if "class_path" not in value:
        return {name: instantiate(inner) for name, inner in value.items()}
    return check_class_path(str(value["class_path"]))(**instantiate(value.get("init_args") or {}))


def check_class_path(path: str, key: str = "") -> Any:
    """Return what a class path names if a config may build it."""
    target = named(path)
    built = target if inspect.isclass(target) else _returned(target)
    package, *rooms = getattr(built, "__module__", "").split(".")
    is_kdlab = package == "kdlab" and rooms[:1] and rooms[0] in ROOMS
    is_known = inspect.isclass(built) and (is_kdlab or issubclass(built, KINDS))
    if not is_known and not is_own(target):
        kinds = "networks, losses, optimizers, schedulers, data, and what a Trainer takes, or is in your own files"
        what = "is none" if inspect.isclass(target) else "is no function that is annotated to return one"
        text = f"{key + ': ' if key else ''}a config builds {kinds}: {path} {what}."
        raise InputError(text, key=key if "." in key else "", value=path)
    return target


def named(path: str) -> Any:
    """Return what a class path names.

    Raises:
        InputError: no config may name it, there is no such module, or no such name in it.
    """
    parts = path.split(".")
    prefixes = [".".join(parts[:end]) for end in range(len(parts), 0, -1)]
    if denied := next((prefix for prefix in prefixes if prefix in DENIED), None):
        raise is_denied(path, denied)
    for end, name in zip(range(len(parts) - 1, 0, -1), prefixes[1:], strict=True):
        try:
            value: Any = import_module(name)
        except Exception as error:
            missing = error.name if isinstance(error, ModuleNotFoundError) else None
            if missing and f"{name}.".startswith(f"{missing}."):  # not something that it imports
                continue
            if broken := failed_import(error):
                raise broken from error
            raise
        for part in parts[end:]:
            if not hasattr(value, part):
                names = dict.fromkeys([*getattr(value, "__all__", ()), *dir(value)])
                hint = f"the nearest are {nearest(part, names, 3)}"
                raise InputError(f"{name} has no {part!r}; {hint}.", value=path)
            value = getattr(value, part)
        return value
    raise InputError(f"There is no module {parts[0]!r} for the class path {path!r}.", value=path)


def is_denied(path: str, entry: str) -> InputError:
    """Return the error of a class path below an entry of :data:`DENIED`."""
    reason = (
        "Python's own modules"
        if entry.partition(".")[0] in sys.stdlib_module_names
        else "what runs code or reads pickles"
    )
    return InputError(f"{path}: a config cannot name {reason} ({entry}).", value=path)


def is_own(target: Any) -> bool:
    """Return whether a class, function or module is of the user's own files: not installed, and not kdlab's."""
    name = target.__name__ if inspect.ismodule(target) else getattr(target, "__module__", None) or ""
    return is_own_file(getattr(sys.modules.get(name), "__file__", None))


def is_own_file(file: str | None) -> bool:
    """Return whether a file of code is one of the user's own."""
    return file is not None and not any(folder in Path(file).resolve().parents for folder in INSTALLED)


def _returned(function: Any) -> Any:
    """Return the class that a function is annotated to return; ``None`` without one, or for a method."""
    if not inspect.isfunction(function):
        return None
    try:
        return get_type_hints(function).get("return")
    except (NameError, TypeError):  # an annotation that exists for the type checker alone
        return None
