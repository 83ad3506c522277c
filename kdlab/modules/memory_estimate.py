"""Estimate of the memory that a training takes."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from kdlab.modules.base import DistillationModule
from kdlab.modules.first_batch import first_batch
from kdlab.schedules import Progress


def memory_of(module: DistillationModule, size: int | None = None) -> dict[str, float]:
    """Estimate the memory of one process in training, in bytes: weights, gradients, optimizer state, activations.

    ``size`` is the number of samples in a batch over all processes; ``None`` is the batch size of the data.
    """
    trained = sum(parameter.numel() * parameter.element_size() for parameter in module.trainable().values())
    teachers = [network for member in module.plan.frozen for network, _ in member.networks_of(member.name)]
    parts = {id(part): part for part in (module, *teachers)}.values()
    tensors = [tensor for part in parts for tensor in (*part.parameters(), *part.buffers())]
    weights = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    batch = first_batch(module).few._replace(progress=Progress(0, 0))
    if size is None:
        size = int(getattr(getattr(module.trainer, "datamodule", None), "batch_size", len(batch.target)))
    size = math.ceil(size / module.trainer.world_size)

    saved: dict[int, int] = {}

    def save(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor.detach()  # the tensor itself would keep its graph, and nothing of that would ever be freed

    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        # Kept until counted: freed storage would be counted once for many tensors.
        outputs = module.observe(batch, module.plan.learners.values())
    parameters = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    activations = sum(nbytes for pointer, nbytes in saved.items() if pointer not in parameters)
    del outputs
    return {
        "weights": weights,
        "gradients": trained,
        "optimizer": trained * state_per_parameter(module),
        f"activations of {size} samples": activations * size / len(batch.target),
    }


def state_per_parameter(module: DistillationModule) -> float:
    """Return how many numbers the optimizer keeps for each trained one: 1 for SGD with momentum, 2 for Adam."""
    parameter = nn.Parameter(torch.zeros(1024))
    optimizer = module.optimizer([parameter])
    parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    state = [value for values in optimizer.state.values() for value in values.values()]
    return sum(value.numel() for value in state if isinstance(value, Tensor) and value.dim()) / parameter.numel()
