"""Sums over rows of logits that are projected a chunk at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from kdlab.outputs.factored import FactoredLogits

Compute = Callable[[Tensor, slice], Tensor]
"""The sum over some rows of logits (n, V), and which rows they are."""


def chunked_sum(compute: Compute, logits: Tensor, chunk_size: int | None) -> Tensor:
    """Return ``compute(logits, all rows)``, in chunks of rows where the logits are not computed yet.

    The gradient of each chunk's logits is taken at once and folded into that of the hidden states and of the head, so
    that forward and backward store ``chunk_size`` x V numbers and the gradients, and never N x V. Value and gradient
    are those of the whole but for the order of the sums.

    Args:
        compute: the sum over rows: a function of their logits (n, V) alone, as far as gradients go.
        logits: (N, V), factored or not.
        chunk_size: rows at a time; ``None`` for all at once.
    """
    if chunk_size is None or not isinstance(logits, FactoredLogits) or logits.computed is not None:
        return compute(logits, slice(0, len(logits)))
    value: Tensor = _ChunkedSum.apply(  # type: ignore[no-untyped-call]
        compute, logits.finish, chunk_size, logits.hidden, logits.weight, logits.bias
    )
    return value


class _ChunkedSum(torch.autograd.Function):
    """The sum, whose gradient is computed in the forward pass."""

    @staticmethod
    def forward(ctx: Any, compute: Compute, finish: Any, size: int, *factors: Tensor | None) -> Tensor:
        ctx.how = compute, finish, size, tuple(ctx.needs_input_grad[3:])
        ctx.save_for_backward(*factors)
        value, ctx.gradients = _sum(*ctx.how, *factors)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:  # a graph that was kept: the first backward pass took them away
            _, gradients = _sum(*ctx.how, *ctx.saved_tensors)
        return None, None, None, *(None if each is None else each.mul_(gradient) for each in gradients)


def _sum(
    compute: Compute,
    finish: Callable[[Tensor], Tensor],
    size: int,
    needed: tuple[bool, ...],
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    """Return the sum over all rows, and the gradients that are needed of hidden states, weight and bias."""

    def zeros(like: Tensor | None, wide: bool) -> Tensor | None:
        """Return where a gradient is summed: in float32 at least, as one product of all rows would be."""
        dtype = None if like is None or not wide else torch.promote_types(like.dtype, torch.float32)
        return None if like is None else torch.zeros_like(like, dtype=dtype)

    of_hidden = zeros(hidden, False) if needed[0] else None
    of_weight, of_bias = (zeros(x, True) if need else None for x, need in zip((weight, bias), needed[1:], strict=True))
    values = []
    with torch.autocast(hidden.device.type, enabled=False):
        for start in range(0, len(hidden), size):
            rows = slice(start, min(start + size, len(hidden)))
            part = hidden[rows]
            product = F.linear(part, weight, bias)
            if not any(needed):
                values.append(compute(finish(product), rows))
                continue
            with torch.enable_grad():
                value = compute(finish(product.requires_grad_()), rows)
                (gradient,) = torch.autograd.grad(value, product)
            del product
            values.append(value.detach())
            if of_hidden is not None:
                torch.mm(gradient, weight, out=of_hidden[rows])
            if of_weight is not None and of_weight.dtype == gradient.dtype:
                of_weight.addmm_(gradient.mT, part)
            elif of_weight is not None:
                of_weight += gradient.mT @ part
            if of_bias is not None:
                of_bias += gradient.sum(0, dtype=of_bias.dtype)
            del gradient
    total = torch.stack(values).sum() if values else compute(finish(F.linear(hidden, weight, bias)), slice(0, 0))
    cast = (of_hidden, *(None if x is None else x.to(weight.dtype) for x in (of_weight, of_bias)))
    return total.detach(), cast
