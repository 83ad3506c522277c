"""The smallest batch of an epoch, tried before a training."""

from __future__ import annotations

from typing import Any

import torch
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor

from kdlab.compat import BatchNorm, is_lazy
from kdlab.errors import InputError
from kdlab.modules.first_batch import FirstBatch
from kdlab.schedules import Progress


def try_smallest_batch(module: Any, data: FirstBatch) -> None:
    """Run a batch as small as the smallest one of an epoch through a DistillationModule, where a dry run is prepared.

    A loss over pairs of samples is 0 on one sample, which has no pair. A network or a loss that needs a spread or a
    contrast over samples has no value there.

    Raises:
        InputError: a network or a loss fails on it, or its value or gradient is not finite.
    """
    size, full = data.smallest, len(data.batch.target)
    if size is None or size >= len(data.few.target) > 1:
        return
    norms = [part for part in module.losses.modules() if isinstance(part, BatchNorm)]  # in eval mode until now
    buffers = [(buffer, buffer.clone()) for norm in norms for buffer in norm.buffers()]
    batch, what = data.first(size)._replace(progress=Progress(0, 0, 1)), ""
    try:
        for norm in norms:
            norm.train()
        seen: dict[str, Any] = {}
        for member in module.plan.members.values():
            what = f"the network {member.name!r}"
            seen |= member(batch, seen)
        what = "the task loss"
        values: dict[str, Tensor] = {}
        if (value := module.supervised(seen, batch)) is not None:
            values[what] = value
        for name, own in module.knowledge.items():
            what = f"knowledge {name!r} ({type(own.loss).__name__})"
            compared = [own.compare(edge, loss, seen, batch) for edge, loss in own.edges]
            if terms := [term for term in compared if term is not None]:
                values[what] = torch.stack(terms).sum()
        parameters = [each for each in module.trainable().values() if not is_lazy(each)]
        for what, value in values.items():
            gradients = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
            if not all(each.isfinite().all() for each in (value, *gradients) if each is not None):
                raise InputError(f"its value is {value.item()}, with a gradient that is not finite")
            if full == 1 and value == 0 and what != "the task loss":
                rank_zero_warn(f"A batch of a process has 1 sample, on which {what} is 0: raise the batch size.")
    except Exception as error:
        reason = str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__
        raise InputError(
            f"The last batch of an epoch has {size} sample{'s' if size > 1 else ''} a process, on which {what} fails "
            f"({reason}): leave it out (data.drop_last=true, or drop_last=True in your DataLoader), or take another "
            "batch size.",
            key="data.batch_size",
        ) from error
    finally:
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
