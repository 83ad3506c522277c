"""Identity of a run: its config, the user's code that the config names, and its data."""

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
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import kdlab
from kdlab.config.class_paths import is_own_file, named

SHOWN = ("logger", "enable_progress_bar", "enable_model_summary", "log_every_n_steps", "profiler", "default_root_dir")
PLACED = ("accelerator", "strategy", "devices", "num_nodes", "plugins")
"""Options of the Trainer that change what is seen of a run, or where it runs, and not what it computes."""
IGNORED = (
    "checkpoint",
    "ckpt_path",
    *(f"trainer.{name}" for name in (*SHOWN, *PLACED)),
    *(f"data.init_args.{name}" for name in ("root", "download", "num_workers", "eval_batch_size", "cache")),
    "model.init_args.teacher_cache.folder",
    "model.init_args.teacher_cache.init_args.folder",
)
"""Options that change no result; ``*`` is any name."""
ADDED = (
    *("model.init_args.knowledge.*.teachers", "model.init_args.knowledge.*.init_args.teachers"),
    "model.init_args.teacher_fast.timed",
)
"""Options that kdlab 0.1.0 did not have: at their default, empty, they keep the identity of its runs."""
LENGTH = 12


def canonical(config: dict[str, Any]) -> dict[str, Any]:
    """Return a resolved config without the options that do not change the result: logging, place, folders."""
    counted = copy.deepcopy(config)
    for key in IGNORED:
        _drop(counted, key.split("."))
    for key in ADDED:
        _drop(counted, key.split("."), only_empty=True)
    return counted


def _drop(config: Any, path: Sequence[str], only_empty: bool = False) -> None:
    name, *rest = path
    for key in list(config) if isinstance(config, dict) else ():
        if name not in ("*", key):
            continue
        if rest:
            _drop(config[key], rest, only_empty)
        elif not only_empty or not config[key]:
            del config[key]


def digest(*parts: Any) -> str:
    """Return the first 12 hexadecimal digits of the SHA-256 of ``parts`` as JSON."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:LENGTH]


def of_config(config: dict[str, Any]) -> str:
    """Return the hash of a resolved config, its seed included, and of the code version.

    The code version is kdlab's version number, which changes when results do, and, for classes and functions of the
    user's own files that the config names by a ``class_path``, the code of their modules without docstrings and
    comments. kdlab's own code is not hashed: weeks of training are not to be repeated because a file was tidied. The
    commit, and the versions of other libraries, are in the ledger.
    """
    counted = canonical(config)
    return digest(counted, kdlab.__version__, sorted(code_of(counted)))


def of_data(config: Mapping[str, Any]) -> str:
    """Return the hash of what a resolved config says of its data, without the seed."""
    data = copy.deepcopy(canonical(dict(config)).get("data") or {})
    (data.get("init_args") or {}).pop("seed", None)
    return digest(data)


def code_of(config: Any) -> set[tuple[str, str]]:
    """Return name and hash of each of the user's own modules that a config names."""
    modules = set[ModuleType]()
    for value in _values(config):
        path = value.get("class_path") if isinstance(value, dict) else None
        target = named(path) if isinstance(path, str) else _own_value(value) if isinstance(value, str) else None
        modules.update(_modules_of(target))
    files = {module: getattr(module, "__file__", None) for module in modules}
    return {(module.__name__, _hash(module)) for module, file in files.items() if is_own_file(file)}


def _own_value(text: str) -> Any:
    """Return what a text names in a module of the user's own; ``None`` if it names nothing there."""
    if re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", text):
        with contextlib.suppress(ValueError):
            spec = find_spec(text.partition(".")[0])  # not imported yet: any text could be the name of a module
            files = (spec.origin, *(spec.submodule_search_locations or ())) if spec else ()
            if spec and any(is_own_file(file) for file in files):
                return named(text)
    return None


def _values(config: Any) -> Iterator[Any]:
    """Yield every value in a config, the config included."""
    yield config
    if isinstance(config, dict | list):
        for value in config.values() if isinstance(config, dict) else config:
            yield from _values(value)


def _modules_of(value: Any) -> list[ModuleType]:
    """Return the modules that define a function, or a class and its bases."""
    definitions = inspect.getmro(value) if inspect.isclass(value) else (inspect.unwrap(value),)
    names = [getattr(definition, "__module__", "") for definition in definitions]
    return [sys.modules[name] for name in names if name in sys.modules]


@functools.cache
def _hash(module: ModuleType) -> str:
    """Return the hash of a module's code without docstrings and comments."""
    tree = ast.parse(inspect.getsource(module))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and body:
            first = body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and type(first.value.value) is str:
                node.body = body[1:]
    return hashlib.sha256(ast.unparse(tree).encode()).hexdigest()[:LENGTH]
