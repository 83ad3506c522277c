"""Parameters that are shared out over processes (FSDP2, Lightning's ``ModelParallelStrategy``)."""

from __future__ import annotations

from collections.abc import Iterable

import pytorch_lightning as pl
import torch.distributed as dist
from pytorch_lightning.strategies import ModelParallelStrategy
from torch import nn

from kdlab.errors import InputError


def shard(module: pl.LightningModule, parts: Iterable[nn.Module]) -> None:
    """Shard the parameters of each part, with the values of the first process, where the strategy asks for it.

    Raises:
        InputError: parameters outside the parts, whose gradients nothing would average.
    """
    trainer = module._trainer
    if trainer is None or not isinstance(trainer.strategy, ModelParallelStrategy):
        return
    from torch.distributed.fsdp import fully_shard

    mesh = trainer.strategy.device_mesh
    if mesh["tensor_parallel"].size() > 1:
        raise InputError("ModelParallelStrategy: set tensor_parallel_size to 1, data_parallel_size to the processes.")
    for tensor in (*module.parameters(), *module.buffers()):
        dist.broadcast(tensor.data, 0)
    own = [part for part in parts if any(True for _ in part.parameters())]
    inside = {id(parameter) for part in own for parameter in part.parameters()}
    if outside := [name for name, parameter in module.named_parameters() if id(parameter) not in inside]:
        raise InputError(
            f"ModelParallelStrategy shards networks and losses, but {outside[0]!r} belongs to the teaching: use ddp."
        )
    for part in own:
        fully_shard(part, mesh=mesh["data_parallel"])
