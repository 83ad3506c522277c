"""Memory estimates of a training."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from kdlab.modules.base import DistillationModule
from kdlab.modules.first_batch import training_data


def memory_of(module: DistillationModule, size: int | None = None) -> dict[str, float]:
    """An estimate of the memory of training, in bytes: weights, gradients, optimiser, activations of ``size`` samples.

    Without ``size``, of as many as a process gets of each batch.
    """
    trained = sum(parameter.numel() * parameter.element_size() for parameter in module.trainable().values())
    weights = sum(each.numel() * each.element_size() for each in [*module.parameters(), *module.buffers()])
    batch = training_data(module).few
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor.detach()  # itself, it would hold its own graph, and nothing of that were ever freed

    own = {each.untyped_storage().data_ptr() for each in module.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        alive = module.observe(batch)  # kept until counted: freed storage would be counted once for many tensors
    if size is None:
        size = int(getattr(getattr(module.trainer, "datamodule", None), "batch_size", len(batch.target)))
    size = math.ceil(size / module.trainer.world_size)
    activations = sum(count for place, count in kept.items() if place not in own) * size / len(batch.target)
    del alive
    return {
        "weights": weights,
        "gradients": trained,
        "optimiser": trained * state_per_parameter(module),
        f"activations of {size} samples": activations,
    }


def state_per_parameter(module: DistillationModule) -> float:
    """Numbers that the optimiser keeps for each trained number: 1 for SGD with momentum, 2 for Adam."""
    trial = nn.Parameter(torch.zeros(1024))
    optimizer = module.optimizer([trial])
    trial.grad = torch.zeros_like(trial)
    optimizer.step()
    state: Iterable[Any] = (value for each in optimizer.state.values() for value in each.values())
    return sum(value.numel() for value in state if isinstance(value, Tensor) and value.dim()) / trial.numel()
