"""Tensors of all processes of a distributed training."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def is_distributed() -> bool:
    """Return whether several processes train together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def counts(rows: int, device: torch.device) -> list[int]:
    """Return the ``rows`` of every process, in order of rank."""
    size = torch.tensor([rows], device=device)
    sizes = [torch.empty_like(size) for _ in range(dist.get_world_size())]
    dist.all_gather(sizes, size)
    return [int(each) for each in torch.cat(sizes).tolist()]


def gather(x: Tensor) -> Tensor:
    """Return the rows of all processes, in order of rank; their numbers may differ.

    Every process is to compute the same loss of the result. Its own rows then receive the gradient times the number of
    processes, which DDP's mean over processes turns into the gradient of one process on all rows.
    """
    gathered: Tensor = _Gather.apply(x) if is_distributed() else x
    return gathered


def first_row(rows: int, device: torch.device) -> int:
    """Return the place of this process's first row among the rows of all processes."""
    return sum(counts(rows, device)[: dist.get_rank()]) if is_distributed() else 0


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        sizes = counts(len(x), x.device)
        padded = torch.cat([x, x.new_zeros(max(sizes) - len(x), *x.shape[1:])])
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        start = sum(sizes[: dist.get_rank()])
        ctx.rows = slice(start, start + len(x))
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0][ctx.rows] * dist.get_world_size()
