"""What makes one run another run: its config, the code of what the config names, and its data."""

from __future__ import annotations

import ast
import contextlib
import copy
import functools
import hashlib
import inspect
import json
import re
import sys
import sysconfig
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import kdlab
from kdlab.errors import InputError, failed_import, nearest

SHOWN = ("logger", "enable_progress_bar", "enable_model_summary", "log_every_n_steps", "profiler", "default_root_dir")
PLACED = ("accelerator", "strategy", "devices", "num_nodes", "plugins")
"""Options of the Trainer that change what is seen of a run, or where it runs, and not what it computes."""
LENGTH = 12
INSTALLED = [Path(sysconfig.get_path(each)).resolve() for each in ("purelib", "platlib", "stdlib")]


def canonical(config: dict[str, Any]) -> dict[str, Any]:
    """A resolved config without what does not change the result: logging, place, folders."""
    kept = copy.deepcopy(config)
    for name in (*SHOWN, *PLACED):
        kept["trainer"].pop(name, None)
    for name in ("checkpoint", "ckpt_path"):
        kept.pop(name, None)
    data = (kept.get("data") or {}).get("init_args") or {}
    for name in ("root", "download", "num_workers", "eval_batch_size"):
        data.pop(name, None)
    if cache := ((kept.get("model") or {}).get("init_args") or {}).get("teacher_cache"):
        (cache.get("init_args") or cache).pop("folder", None)
    return kept


def digest(*parts: Any) -> str:
    """The first 12 hexadecimal digits of the SHA-256 of ``parts`` as JSON."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:LENGTH]


def of_config(config: dict[str, Any]) -> str:
    """The hash of a resolved config, its seed included, and of the code version.

    That is kdlab's version number, which changes when results do, and for classes and functions of the user's own files
    that the config names by a ``class_path`` the code of their modules, docstrings and comments apart. kdlab's own code
    is not hashed: weeks of training are not to be repeated because a file was tidied. The commit, and the versions of
    other libraries, stand in the ledger.
    """
    kept = canonical(config)
    return digest(kept, kdlab.__version__, sorted({*code_of(kept)}))


def code_of(config: Any) -> Iterator[tuple[str, str]]:
    """Name and hash of each of the user's own modules that a config names."""
    for name in {*class_paths(config), *_functions(config)}:
        for module in modules_of(named(name)):
            if _own(module.__name__, getattr(module, "__file__", None)):
                yield module.__name__, of_module(module)


def class_paths(config: Any) -> Iterator[str]:
    """Every class path in a config."""
    if isinstance(config, dict):
        if isinstance(path := config.get("class_path"), str):
            yield path
        for each in config.values():
            yield from class_paths(each)
    elif isinstance(config, list):
        for each in config:
            yield from class_paths(each)


def _functions(config: Any) -> Iterator[str]:
    """Every text in a config that names something in a module of the user's own, as that of a function does."""
    if isinstance(config, dict | list):
        for each in config.values() if isinstance(config, dict) else config:
            yield from _functions(each)
    elif isinstance(config, str) and re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", config):
        with contextlib.suppress(ValueError):
            spec = find_spec(config.partition(".")[0])  # not imported yet: any text could be the name of a module
            if spec and any(_own(spec.name, each) for each in (spec.origin, *(spec.submodule_search_locations or ()))):
                named(config)
                yield config


def named(path: str) -> Any:
    """What a class path names.

    Raises:
        InputError: there is no such module, or no such name in it.
    """
    parts = path.split(".")
    for end in range(len(parts) - 1, 0, -1):
        try:
            found: Any = import_module(".".join(parts[:end]))
        except Exception as error:
            missing = error.name if isinstance(error, ModuleNotFoundError) else None
            if missing and f"{'.'.join(parts[:end])}.".startswith(f"{missing}."):  # not something that it imports
                continue
            if broken := failed_import(error):
                raise broken from error
            raise
        for part in parts[end:]:
            if not hasattr(found, part):
                names = dict.fromkeys([*getattr(found, "__all__", ()), *dir(found)])
                raise InputError(f"{'.'.join(parts[:end])} has no {part!r}; the nearest are {nearest(part, names, 3)}.")
            found = getattr(found, part)
        return found
    raise InputError(f"There is no module {parts[0]!r} for the class path {path!r}.")


def modules_of(found: Any) -> list[ModuleType]:
    """The modules that define a function, or a class and its bases."""
    kinds = inspect.getmro(found) if inspect.isclass(found) else (inspect.unwrap(found),)
    return [sys.modules[kind.__module__] for kind in kinds if getattr(kind, "__module__", "") in sys.modules]


@functools.cache
def of_module(module: ModuleType) -> str:
    """The hash of a module's code without docstrings and comments."""
    tree = ast.parse(inspect.getsource(module))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and body:
            first = body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and type(first.value.value) is str:
                node.body = body[1:]
    return hashlib.sha256(ast.unparse(tree).encode()).hexdigest()[:LENGTH]


def _own(name: str, file: str | None) -> bool:
    installed = file is None or any(place in Path(file).resolve().parents for place in INSTALLED)
    return not installed and name.split(".")[0] != "kdlab"
