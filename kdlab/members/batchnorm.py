"""BatchNorm of untrained networks: normalization by the batch's own statistics."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from kdlab.compat import BatchNorm


@contextmanager
def batch_statistics(module: nn.Module) -> Iterator[None]:
    """Let BatchNorm normalize with the batch's own statistics; running ones are neither read nor written."""
    norms = [m for m in module.modules() if isinstance(m, BatchNorm) and m.track_running_stats]
    try:
        for norm in norms:
            norm.training, norm.track_running_stats = True, False
        yield
    finally:
        for norm in norms:
            norm.training, norm.track_running_stats = False, True
