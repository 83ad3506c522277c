"""Further views of the samples of a batch, run through a network in one forward with the batch itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from kdlab.errors import InputError
from kdlab.outputs import Batch, Outputs
from kdlab.outputs.batch import inputs_of


def see(observe: Callable[[Any], Outputs], batch: Batch, views: Sequence[str] = ()) -> Outputs:
    """What a network gives on the batch, with its outputs on ``views`` of it under their names.

    One forward for all: two forwards before one backward break BatchNorm under DDP. Normalisation by batch statistics
    therefore sees all views together.

    Args:
        observe: runs the network.
        batch: its ``views`` hold (V * B, ...) inputs by name, the V views of one sample side by side; of a view that is
            a batch itself, the outputs carry its labels, index and mix.
        views: the names of those wanted.

    Raises:
        InputError: the batch lacks a view, or has inputs other than a tensor.
    """
    if not views:
        return dataclasses.replace(observe(batch.inputs), index=batch.index)
    given = batch.views or {}
    for name in views:
        if name not in given:
            raise InputError(
                f"The batch has no view {name!r}: let the data give it (data.views), or the loader a fourth element "
                f"{{{name!r}: inputs (V * B, ...), the V views of one sample side by side}}."
            )
    if not isinstance(batch.inputs, Tensor):
        raise InputError("Views need batches whose inputs are one tensor.")
    shown = [given[name] for name in views]
    parts = [batch.inputs, *map(inputs_of, shown)]
    seen = observe(torch.cat(parts))
    ends = torch.tensor([len(part) for part in parts]).cumsum(0).tolist()
    first, *others = (
        seen.map(lambda x, a=start, b=end: x[a:b])  # type: ignore[misc]
        for start, end in zip([0, *ends], ends, strict=False)
    )
    others = [
        dataclasses.replace(each, index=view.index, target=view.target, mix=view.mix)
        if isinstance(view, Batch)
        else each
        for each, view in zip(others, shown, strict=True)
    ]
    return dataclasses.replace(first, index=batch.index, views=dict(zip(views, others, strict=True)))
