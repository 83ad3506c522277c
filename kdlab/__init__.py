"""kdlab: knowledge distillation with PyTorch Lightning."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from kdlab import aliases

if TYPE_CHECKING:
    from kdlab.errors import InputError as InputError
    from kdlab.knowledge import Knowledge as Knowledge
    from kdlab.modules import CoTrainer as CoTrainer
    from kdlab.modules import Distiller as Distiller
    from kdlab.outputs import Batch as Batch
    from kdlab.outputs import Outputs as Outputs
    from kdlab.outputs import observe as observe
    from kdlab.teaching import FrozenTeacher as FrozenTeacher

__version__ = "0.1.0"

aliases.install()

_HOMES = {
    "InputError": "kdlab.errors",
    "Knowledge": "kdlab.knowledge",
    "CoTrainer": "kdlab.modules",
    "Distiller": "kdlab.modules",
    "Batch": "kdlab.outputs",
    "Outputs": "kdlab.outputs",
    "observe": "kdlab.outputs",
    "FrozenTeacher": "kdlab.teaching",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    # Loaded when asked for: Lightning alone takes seconds to import.
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'kdlab' has no attribute {name!r}")
