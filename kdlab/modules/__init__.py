"""The LightningModules that wrap teacher-student pairs."""

from kdlab.modules.base import DistillationModule
from kdlab.modules.distiller import Distiller

__all__ = ["DistillationModule", "Distiller"]
