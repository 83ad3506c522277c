"""Shared mathematics of the losses, and the precision in which they compute."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdlab.compat import is_lazy
from kdlab.errors import InputError
from kdlab.outputs import Outputs

_Loss = TypeVar("_Loss", bound=nn.Module)
_Forward = Callable[[_Loss, Outputs, Outputs, Tensor], Tensor]


def full_precision(forward: _Forward[_Loss]) -> _Forward[_Loss]:
    """Make a ``forward`` compute in float32 with autocast off (in float64 if an input or a weight is float64).

    Inputs, parameters and buffers of another floating dtype are converted for the call (``precision="bf16-true"`` makes
    the weights of the loss bfloat16); gradients have the dtype of the original, and buffers updated in place are
    written back. Lazy parameters take the dtype of the computation. Inputs that already have the dtype are passed on
    unchanged. TF32 inside float32 products stays the user's setting. Works on every device type.

    Args:
        forward: the method ``forward(self, student, teacher, target)`` of an ``nn.Module``.
    """

    @functools.wraps(forward)
    def wrapper(self: _Loss, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        device = student.logits.device.type
        if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
            with torch.autocast(device, enabled=False):
                return wrapper(self, student, teacher, target)
        inputs = [*student.tensors(), *teacher.tensors()]
        if not (self._parameters or self._buffers or self._modules) and all(x.dtype is torch.float32 for x in inputs):
            return forward(self, student, teacher, target)  # the common case: the rest would change nothing
        tensors = dict(itertools.chain(self.named_parameters(), self.named_buffers()))
        tensors = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}
        inputs = [tensor for tensor in inputs if tensor.is_floating_point()]
        dtype = torch.float64 if any(t.dtype is torch.float64 for t in (*tensors.values(), *inputs)) else torch.float32
        if any(map(is_lazy, tensors.values())):
            self.to(dtype=dtype)
            tensors = {}
        if any(tensor.dtype is not dtype for tensor in inputs):
            student, teacher = (
                each.map(lambda t: t.to(dtype) if t.is_floating_point() else t) for each in (student, teacher)
            )
        if all(tensor.dtype is dtype for tensor in tensors.values()):
            return forward(self, student, teacher, target)
        converted = {name: tensor.to(dtype) for name, tensor in tensors.items()}
        weights = {f"loss.{name}": tensor for name, tensor in converted.items()}
        loss: Tensor = torch.func.functional_call(_Functional(self, forward), weights, (student, teacher, target))
        with torch.no_grad():
            for name, buffer in self.named_buffers():
                if name in converted and converted[name] is not buffer:
                    buffer.copy_(converted[name])
        return loss

    wrapper.__dict__["widens"] = True
    return wrapper


def widens(loss: nn.Module) -> bool:
    """Return whether the ``forward`` of the loss is decorated by :func:`full_precision`."""
    return bool(getattr(type(loss).forward, "widens", False))


class _Functional(nn.Module):
    """A loss with its undecorated forward, for ``functional_call`` with converted weights."""

    def __init__(self, loss: _Loss, plain: _Forward[_Loss]) -> None:
        super().__init__()
        self.loss = loss
        self.plain = plain

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        return self.plain(self.loss, student, teacher, target)


def kl_divergence(student: Tensor, teacher: Tensor, temperature: float, floor: float = 0.0) -> Tensor:
    """Return the Kullback-Leibler divergence of softened class distributions, teacher first.

    ``T^2 * mean over positions of sum_k p_k (log p_k - log q_k)`` with ``p = softmax(teacher / T)``,
    ``q = softmax(student / T)`` over the last axis, both from ``log_softmax``.

    Args:
        student: logits (..., K).
        teacher: logits of the same shape.
        temperature: T, positive.
        floor: added to each p_k.

    Raises:
        InputError: there is no position to average over.
    """
    positions = math.prod(student.shape[:-1])
    if not positions:
        raise InputError("There is no position to compare: the mask is 0 everywhere, or the batch is empty.")
    log_q = F.log_softmax(student / temperature, dim=-1)
    log_p = F.log_softmax(teacher / temperature, dim=-1)
    if floor:
        log_p = (log_p.exp() + floor).log()
    return F.kl_div(log_q, log_p, reduction="sum", log_target=True) * (temperature**2 / positions)


def pool_to_smaller(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Return both maps (B, C, H, W) pooled (adaptive average) to the smaller height and the smaller width."""
    size = (min(first.shape[2], second.shape[2]), min(first.shape[3], second.shape[3]))

    def pooled(x: Tensor) -> Tensor:
        return x if x.shape[2:] == size else F.adaptive_avg_pool2d(x, size)

    return pooled(first), pooled(second)
