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
Gradient = Callable[[Tensor, slice], tuple[Tensor, Tensor]]
"""The same sum and its gradient (n, V), which may overwrite the logits."""


def chunked_sum(compute: Compute, logits: Tensor, chunk_size: int | None, gradient: Gradient | None = None) -> Tensor:
    """Return ``compute(logits, all rows)``, in chunks of rows where the logits are not computed yet.

    The gradient of each chunk's logits is taken at once and folded into that of the hidden states and of the head, so
    that forward and backward store ``chunk_size`` x V numbers and the gradients, and never N x V. Value and gradient
    are those of the whole but for the order of the sums.

    Args:
        compute: the sum over rows: a function of their logits (n, V) alone, as far as gradients go.
        logits: (N, V), factored or not.
        chunk_size: rows at a time; ``None`` for all at once.
        gradient: gives the gradient with fewer copies of a chunk than autograd keeps.
    """
    if chunk_size is None or not isinstance(logits, FactoredLogits) or logits.computed is not None:
        return compute(logits, slice(0, len(logits)))
    value: Tensor = _ChunkedSum.apply(
        (compute, gradient, logits.after), chunk_size, logits.hidden, logits.weight, logits.bias
    )
    return value


Functions = tuple[Compute, "Gradient | None", tuple[Callable[[Tensor], Tensor], ...]]
"""The sum, its gradient, and what follows the head."""


class _ChunkedSum(torch.autograd.Function):
    """The sum, whose gradient is computed in the forward pass."""

    @staticmethod
    def forward(ctx: Any, functions: Functions, size: int, *factors: Tensor | None) -> Tensor:
        ctx.how = functions, size, tuple(ctx.needs_input_grad[2:])
        ctx.save_for_backward(*factors)
        value, ctx.gradients = _sum(*ctx.how, *factors)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:  # a graph that was kept: the first backward pass took them away
            _, gradients = _sum(*ctx.how, *ctx.saved_tensors)
        return None, None, *(None if each is None else each.mul_(gradient) for each in gradients)


def _sum(
    functions: Functions,
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
        room = hidden.new_empty(min(size, len(hidden)), len(weight))  # large blocks cost time when they are allocated
        for start in range(0, len(hidden), size):
            rows = slice(start, min(start + size, len(hidden)))
            part, product = hidden[rows], room[: rows.stop - start]
            if bias is None:
                torch.mm(part, weight.mT, out=product)
            else:
                torch.addmm(bias, part, weight.mT, out=product)
            value, gradient = _chunk(functions, product, rows, any(needed))
            values.append(value)
            if gradient is None:
                continue
            if of_hidden is not None:
                torch.mm(gradient, weight, out=of_hidden[rows])
            if of_weight is not None and of_weight.dtype == gradient.dtype:
                of_weight.addmm_(gradient.mT, part)
            elif of_weight is not None:
                of_weight += gradient.mT @ part
            if of_bias is not None:
                of_bias += gradient.sum(0, dtype=of_bias.dtype)
            del gradient
    if not values:
        values = [_chunk(functions, F.linear(hidden, weight, bias), slice(0, 0), False)[0]]
    cast = (of_hidden, *(None if x is None else x.to(weight.dtype) for x in (of_weight, of_bias)))
    return torch.stack(values).sum(), cast


def _chunk(functions: Functions, product: Tensor, rows: slice, needed: bool) -> tuple[Tensor, Tensor | None]:
    """Return the sum over some rows, and the gradient of what the head put out."""
    compute, gradient, after = functions
    if needed and gradient is not None and not after:
        return gradient(product, rows)
    with torch.set_grad_enabled(needed):
        logits = product.requires_grad_(needed)
        for function in after:
            logits = function(logits)
        value = compute(logits, rows)
    return value.detach(), torch.autograd.grad(value, product)[0] if needed else None
