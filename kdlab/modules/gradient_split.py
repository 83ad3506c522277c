"""The task's part of the gradient, for an optimiser that treats it apart from the distillation's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from kdlab.errors import InputError
from kdlab.optimizers import DOT

if TYPE_CHECKING:
    from kdlab.modules.base import DistillationModule


def splitting(module: DistillationModule) -> DOT | None:
    """The optimiser of the running training if it wants the parts."""
    (optimizer,) = module.trainer.optimizers
    return optimizer if isinstance(optimizer, DOT) else None


def refuse_clipping(module: DistillationModule, optimizer: torch.optim.Optimizer) -> None:
    """A clipped sum says nothing of its parts.

    Raises:
        InputError: the optimiser is DOT and gradients are to be clipped.
    """
    if isinstance(optimizer, DOT) and module.trainer.gradient_clip_val:
        raise InputError("DOT cannot be used with gradient clipping: drop trainer.gradient_clip_val.")


def note_task(module: DistillationModule, optimizer: DOT, task: Tensor | None, distilled: Tensor | None) -> None:
    """Compute the gradient of the weighted ``task`` and tell the optimiser, before the backward pass of the whole.

    Not by a backward pass of its own: under DDP each step has one. The gradients are averaged over the processes and
    scaled as the accumulation of batches scales the loss.
    """
    parameters = [each for group in optimizer.param_groups for each in group["params"]]
    reached = [] if distilled is None else reaches(distilled, parameters)
    got: Sequence[Tensor | None] = [None] * len(parameters)
    if task is not None:
        scaler: Any = getattr(module.trainer.precision_plugin, "scaler", None)
        scale = float(scaler.get_scale()) if scaler is not None else 1.0
        share = 1 / module.trainer.accumulate_grad_batches
        raw = torch.autograd.grad(task * (scale * share), parameters, retain_graph=True, allow_unused=True)
        got = [None if each is None else each / scale for each in raw] if scale != 1 else raw
    found = {p: gradient for p, gradient in zip(parameters, got, strict=True) if gradient is not None}
    if module.trainer.world_size > 1:
        for gradient in found.values():
            dist.all_reduce(gradient)
            gradient /= module.trainer.world_size
    optimizer.note_task(found, [p for p, hit in zip(parameters, reached, strict=False) if hit])


def reaches(value: Tensor, sources: Sequence[Tensor]) -> list[bool]:
    """Which parameters and tensors the gradient of ``value`` gets to, read off the graph without computing it."""
    nodes, todo = set[Any](), [value.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and node not in nodes:
            nodes.add(node)
            todo += [each for each, _ in node.next_functions]
    leaves = {id(node.variable) for node in nodes if hasattr(node, "variable")}
    return [id(each) in leaves or each.grad_fn in nodes for each in sources]
