"""kdlab: knowledge distillation with PyTorch Lightning."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from kdlab.deprecation import install_aliases

if TYPE_CHECKING:
    from kdlab.errors import InputError
    from kdlab.knowledge import Knowledge
    from kdlab.modules import CoTrainer, Distiller
    from kdlab.outputs import Batch, Outputs, observe
    from kdlab.teaching import FrozenTeacher

__version__ = "0.1.0"

install_aliases()

_HOMES = {"InputError": "errors", "Knowledge": "knowledge", "CoTrainer": "modules", "Distiller": "modules"}
_HOMES |= {"Batch": "outputs", "Outputs": "outputs", "observe": "outputs", "FrozenTeacher": "teaching"}

__all__ = ["Batch", "CoTrainer", "Distiller", "FrozenTeacher", "InputError", "Knowledge", "Outputs", "observe"]
__all__ += ["__version__"]


def __getattr__(name: str) -> Any:
    # Loaded when asked for: Lightning alone takes seconds to import.
    if name in _HOMES:
        return getattr(import_module(f"kdlab.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'kdlab' has no attribute {name!r}")
