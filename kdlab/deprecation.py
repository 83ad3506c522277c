"""Old names that keep working: modules and arguments of kdlab 0.1.0, in saved configs and in code."""

from __future__ import annotations

import functools
import inspect
import sys
import warnings
from collections.abc import Callable
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, TypeVar

_Init = TypeVar("_Init", bound=Callable[..., None])
ALIASES = {
    "kdlab.cli.bar": "kdlab.config.progress_bar",
    "kdlab.cli.whole": "kdlab.config.run_folder",
    "kdlab.data.companions": "kdlab.data.paired_views",
    "kdlab.losses.growing": "kdlab.losses.lazy",
    "kdlab.reproduce": "kdlab.studies",
    "kdlab.reproduce.record": "kdlab.studies.run_callback",
    "kdlab.teaching.branches": "kdlab.teaching.gating",
    "kdlab.teaching.cache": "kdlab.members.teacher_cache",
    "kdlab.teaching.collaboration": "kdlab.teaching.pcl",
    "kdlab.teaching.copies": "kdlab.teaching.ema",
    "kdlab.teaching.ensembles": "kdlab.members.ensembles",
    "kdlab.teaching.fast": "kdlab.members.fast_inference",
    "kdlab.teaching.frozen": "kdlab.teaching.frozen_teacher",
    "kdlab.teaching.memory": "kdlab.teaching.sample_bank",
    "kdlab.teaching.views": "kdlab.teaching.self_consistency",
}
"""Module names of kdlab 0.1.0 and what they are called now."""


def renamed(**names: str) -> Callable[[_Init], _Init]:
    """Make a constructor accept old names of its arguments (old = new), with a ``DeprecationWarning``.

    An old name becomes a keyword-only argument in the signature, ``None`` unless given, so configs that set it by class
    path still parse. The module must postpone its annotations (``from __future__ import annotations``).

    >>> class Scale:
    ...     @renamed(normalise="normalize")
    ...     def __init__(self, normalize: bool = False) -> None:
    ...         self.normalize = normalize
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     Scale(normalise=True).normalize
    True
    """

    def decorate(init: _Init) -> _Init:
        @functools.wraps(init)
        def wrapper(self: Any, *args: Any, **kwargs: Any) -> None:
            for old, new in names.items():
                if (value := kwargs.pop(old, None)) is not None:
                    message = f"{type(self).__name__}: the argument {old!r} is deprecated; use {new!r}."
                    warnings.warn(message, DeprecationWarning, stacklevel=2)
                    kwargs[new] = value
            init(self, *args, **kwargs)

        signature, kind = inspect.signature(init), inspect.Parameter.KEYWORD_ONLY
        types = {old: f"{init.__annotations__[new]} | None" for old, new in names.items()}
        optional = [inspect.Parameter(old, kind, default=None, annotation=types[old]) for old in names]
        wrapper.__dict__["__signature__"] = signature.replace(parameters=[*signature.parameters.values(), *optional])
        wrapper.__annotations__ = {**init.__annotations__, **types}
        return wrapper  # type: ignore[return-value]

    return decorate


class _Finder(MetaPathFinder, Loader):
    def find_spec(self, name: str, *_: object) -> ModuleSpec | None:
        return ModuleSpec(name, self) if name in ALIASES else None

    def exec_module(self, module: ModuleType) -> None:
        name = module.__name__
        warnings.warn(f"{name} is now {ALIASES[name]}.", DeprecationWarning, stacklevel=2)
        sys.modules[name] = import_module(ALIASES[name])  # the import system returns what stands there


def install_aliases() -> None:
    """Make old module names importable."""
    # First: the package kdlab.reproduce is kdlab.studies, whose folder has modules of some of the old names.
    sys.meta_path.insert(0, _Finder())
