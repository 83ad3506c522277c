"""Losses with trained parts whose sizes follow from the first batch, or from the state dict that is loaded."""

from __future__ import annotations

import ast
from typing import Any

import torch
from torch import Tensor, nn

from kdlab.errors import InputError


class Lazy(nn.Module):
    """Makes its parts at the first forward, and again from their recorded sizes when a state dict is loaded.

    A subclass defines :meth:`build` and calls ``self.materialize(tensor, *sizes)`` at the head of its ``forward``; from
    then on its parts are ordinary modules: in the optimizer and in checkpoints, copied and moved like any other. The
    sizes are part of the state dict.

    >>> class Projected(Lazy):
    ...     def build(self, student: int, teacher: int) -> None:
    ...         self.projector = nn.Linear(student, teacher)
    >>> loss = Projected()
    >>> loss.materialize(torch.zeros(1), 4, 8)
    >>> other = Projected()
    >>> other.load_state_dict(loss.state_dict())
    <All keys matched successfully>
    >>> other.projector
    Linear(in_features=4, out_features=8, bias=True)
    """

    def __init__(self) -> None:
        super().__init__()
        self.sizes: tuple[Any, ...] | None = None

    def build(self, *sizes: Any) -> None:
        """Make the parts (modules, parameters, buffers); initial values are drawn from the global generator."""
        raise NotImplementedError(f"{type(self).__name__} must define build().")

    def materialize(self, like: Tensor, *sizes: Any) -> None:
        """Build once, on the device and in the dtype of ``like``; ``sizes`` are plain numbers and tuples of them.

        Raises:
            InputError: the parts were built for other sizes.
        """
        if self.sizes is None:
            with torch.inference_mode(False):  # a first forward in validation must not spoil a later training
                self.build(*sizes)
                self.to(device=like.device, dtype=like.dtype)
            self.sizes = sizes
            self.train(self.training)
        elif self.sizes != sizes:
            raise InputError(
                f"{type(self).__name__} was set up for sizes {_plain(self.sizes)}, but now meets {_plain(sizes)}: give "
                "it the layers that it was set up with."
            )

    def get_extra_state(self) -> Tensor:
        """The sizes as text in bytes, for the state dict: a tensor, as everything else there."""
        return torch.tensor(list(repr(self.sizes).encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """Build for the sizes of a state dict that is being loaded, if nothing is built yet."""
        sizes = ast.literal_eval(bytes(state.tolist()).decode())
        if self.sizes is None and sizes is not None:
            self.build(*sizes)
            self.sizes = sizes
            self.train(self.training)


def _plain(sizes: tuple[Any, ...]) -> Any:
    return sizes[0] if len(sizes) == 1 else sizes
