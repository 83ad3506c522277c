"""Modules whose sizes follow from the first batch or from a loaded state dict."""

from __future__ import annotations

import ast
from typing import Any

import torch
from torch import Tensor, nn

from kdlab.errors import InputError


class Lazy(nn.Module):
    """A module that creates its submodules at the first forward, or from the sizes in a loaded state dict.

    A subclass defines :meth:`build` and calls ``self.materialize(tensor, *sizes)`` at the start of its ``forward``;
    from then on its submodules are ordinary ones: in the optimizer and in checkpoints, copied and moved as usual. The
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
        """Create the submodules, parameters and buffers; initial values are drawn from the global generator."""
        raise NotImplementedError(f"{type(self).__name__} must define build().")

    def materialize(self, like: Tensor, *sizes: Any) -> None:
        """Build once, on the device and in the dtype of ``like``; ``sizes`` are plain numbers and tuples of them.

        Raises:
            InputError: the module was built for other sizes.
        """
        if self.sizes is None:
            with torch.inference_mode(False):  # a first forward in validation must not spoil a later training
                self.build(*sizes)
                self.to(device=like.device, dtype=like.dtype)
            self.sizes = sizes
            self.train(self.training)
        elif self.sizes != sizes:
            raise InputError(
                f"{type(self).__name__} was set up for sizes {_plain(self.sizes)}, but now meets {_plain(sizes)}: tap "
                "the same layers as before."
            )

    def get_extra_state(self) -> Tensor:
        """Return the sizes as text in a byte tensor, for the state dict."""
        return torch.tensor(list(repr(self.sizes).encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """Build for the sizes in a state dict that is being loaded, unless already built."""
        sizes = ast.literal_eval(bytes(state.tolist()).decode())
        if self.sizes is None and sizes is not None:
            self.build(*sizes)
            self.sizes = sizes
            self.train(self.training)


def _plain(sizes: tuple[Any, ...]) -> Any:
    return sizes[0] if len(sizes) == 1 else sizes
