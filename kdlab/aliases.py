"""Old module names, so that class paths in configs saved by kdlab 0.1.0 still resolve."""

from __future__ import annotations

import sys
import warnings
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

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


class _Finder(MetaPathFinder, Loader):
    def find_spec(self, name: str, *_: object) -> ModuleSpec | None:
        return ModuleSpec(name, self) if name in ALIASES else None

    def exec_module(self, module: ModuleType) -> None:
        name = module.__name__
        warnings.warn(f"{name} is now {ALIASES[name]}.", DeprecationWarning, stacklevel=2)
        sys.modules[name] = import_module(ALIASES[name])  # the import system returns what stands there


def install() -> None:
    """Make old module names importable."""
    # First: the package kdlab.reproduce is kdlab.studies, whose folder has modules of some of the old names.
    sys.meta_path.insert(0, _Finder())
