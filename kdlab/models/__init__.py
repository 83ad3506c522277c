"""Networks as plain builder functions, and their weights files."""

from kdlab.models.mlp import MLP, mlp
from kdlab.models.weights import load_weights

__all__ = ["MLP", "load_weights", "mlp"]
