"""Mathematics that several losses share, and the one place where their precision is decided."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from kdlab.errors import InputError
from kdlab.outputs import Outputs

_Loss = TypeVar("_Loss", bound=nn.Module)
_Forward = Callable[[_Loss, Outputs, Outputs, Tensor], Tensor]


def full_precision(forward: _Forward[_Loss]) -> _Forward[_Loss]:
    """Make a loss' ``forward`` compute in float32 with autocast off (in float64 if an input or a weight is float64).

    Inputs, parameters and buffers of another floating dtype are converted for the call (``precision="bf16-true"`` makes
    the loss' own weights bfloat16); gradients arrive in the dtype of the original, and buffers updated in place are
    written back. Parameters not sized yet take the dtype of the computation. When nothing has to be converted, nothing
    is done. What a device does inside a float32 product (TF32) stays the user's setting. Works on every device type.

    Args:
        forward: the method ``forward(self, student, teacher, target)`` of an ``nn.Module``.
    """

    @functools.wraps(forward)
    def wide(self: _Loss, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        device = student.logits.device.type
        if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
            with torch.autocast(device, enabled=False):
                return wide(self, student, teacher, target)
        seen = [*student.tensors(), *teacher.tensors()]
        if not (self._parameters or self._buffers or self._modules) and all(x.dtype is torch.float32 for x in seen):
            return forward(self, student, teacher, target)  # as most often: the rest would only come to the same
        own = dict(itertools.chain(self.named_parameters(), self.named_buffers()))
        own = {name: tensor for name, tensor in own.items() if tensor.is_floating_point()}
        seen = [tensor for tensor in seen if tensor.is_floating_point()]
        wanted = torch.float64 if any(t.dtype is torch.float64 for t in (*own.values(), *seen)) else torch.float32
        if any(map(is_lazy, own.values())):
            self.to(dtype=wanted)
            own = {}
        if any(tensor.dtype is not wanted for tensor in seen):
            student, teacher = (
                each.map(lambda t: t.to(wanted) if t.is_floating_point() else t) for each in (student, teacher)
            )
        if all(tensor.dtype is wanted for tensor in own.values()):
            return forward(self, student, teacher, target)
        converted = {name: tensor.to(wanted) for name, tensor in own.items()}
        held = {f"loss.{name}": tensor for name, tensor in converted.items()}
        loss: Tensor = torch.func.functional_call(_Held(self, forward), held, (student, teacher, target))
        with torch.no_grad():
            for name, buffer in self.named_buffers():
                if name in converted and converted[name] is not buffer:
                    buffer.copy_(converted[name])
        return loss

    wide.__dict__["widens"] = True
    return wide


def widens(loss: nn.Module) -> bool:
    """Whether the loss' own ``forward`` is made by :func:`full_precision`."""
    return bool(getattr(type(loss).forward, "widens", False))


class _Held(nn.Module):
    """One loss and its plain forward, to be called with other weights."""

    def __init__(self, loss: _Loss, plain: _Forward[_Loss]) -> None:
        super().__init__()
        self.loss = loss
        self.plain = plain

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        return self.plain(self.loss, student, teacher, target)


def kl_divergence(
    student: Tensor, teacher: Tensor, temperature: float = 1.0, mask: Tensor | None = None, floor: float = 0.0
) -> Tensor:
    """Kullback-Leibler divergence of softened class distributions, teacher first.

    ``T^2 * mean over positions of sum_k p_k (log p_k - log q_k)`` with ``p = softmax(teacher / T)``,
    ``q = softmax(student / T)`` over the last axis, both from ``log_softmax``.

    Args:
        student, teacher: logits (..., K), of one shape.
        temperature: T, positive.
        mask: (...), positions where it is 1 (or true) count; ``None`` counts all.
        floor: added to each p_k.

    Raises:
        InputError: no position counts.
    """
    if mask is not None:
        student, teacher = student[mask == 1], teacher[mask == 1]
    positions = student.numel() // student.shape[-1]
    if positions == 0:
        raise InputError("The batch has no position to compare: the mask is 0 everywhere, or the batch is empty.")
    log_q = F.log_softmax(student / temperature, dim=-1)
    log_p = F.log_softmax(teacher / temperature, dim=-1)
    if floor:
        log_p = (log_p.exp() + floor).log()
    return F.kl_div(log_q, log_p, reduction="sum", log_target=True) * (temperature**2 / positions)


def pool_to_smaller(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Two maps (B, C, H, W) brought to the smaller height and the smaller width by adaptive average pooling."""
    size = (min(first.shape[2], second.shape[2]), min(first.shape[3], second.shape[3]))

    def pooled(x: Tensor) -> Tensor:
        return x if x.shape[2:] == size else F.adaptive_avg_pool2d(x, size)

    return pooled(first), pooled(second)
