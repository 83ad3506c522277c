"""Weights into a network from any common file, and out of it, without running code that a file carries."""

from __future__ import annotations

import os
from typing import TypeVar

from safetensors.torch import load_file
from torch import nn

Network = TypeVar("Network", bound=nn.Module)


def load_weights(network: Network, path: str | os.PathLike[str]) -> Network:
    """The network with the weights of a safetensors file."""
    network.load_state_dict(load_file(path))
    return network
