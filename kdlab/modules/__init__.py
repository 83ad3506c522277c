"""The LightningModules: a student with its teacher, and networks that learn together."""

from kdlab.modules.base import DistillationModule
from kdlab.modules.cotrainer import CoTrainer
from kdlab.modules.distiller import Distiller

__all__ = ["CoTrainer", "DistillationModule", "Distiller"]
