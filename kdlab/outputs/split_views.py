"""Views and heads of one forward: their inputs side by side, and their outputs by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kdlab.errors import InputError
from kdlab.outputs.containers import Batch, Outputs, inputs_of


def with_views(outputs: Outputs, batch: Batch, views: Sequence[str]) -> Outputs:
    """Split the outputs of one forward on the batch and its ``views``: each view's under its name.

    All views go through a network in one forward: two forwards before one backward break BatchNorm under DDP.
    Normalization by batch statistics therefore sees all views together. A view of V inputs a sample has (V * B, ...)
    outputs; those of a view that is a batch itself carry its labels, index and mix.
    """
    if not views:
        return dataclasses.replace(outputs, index=batch.index)
    parts = [batch.view(name) for name in views]
    sizes = [len(inputs_of(part)) for part in parts]
    ends = torch.tensor([len(outputs.logits) - sum(sizes), *sizes]).cumsum(0).tolist()
    for layer, value in zip(outputs.names, outputs.layers, strict=True):
        if value.shape[:1] != outputs.logits.shape[:1]:
            raise InputError(
                f"Layer {layer!r} gives {tuple(value.shape)}, whose first dimension is not the samples, so it cannot "
                "be split into views: tap another."
            )
    first, *others = (
        outputs.map(lambda x, a=start, b=end: x[a:b])  # type: ignore[misc]
        for start, end in zip([0, *ends], ends, strict=False)
    )
    split = {}
    for name, part, other in zip(views, parts, others, strict=True):
        if isinstance(part, Batch):
            other = dataclasses.replace(other, index=part.index, target=part.target, mix=part.mix)
        split[name] = other
    return dataclasses.replace(first, index=batch.index, views=split)


def inputs_with_views(batch: Batch, inputs: Sequence[str], views: Sequence[str]) -> Any:
    """Return, as one tensor, what a network is called with: the batch (``""``) or other ``inputs``, then ``views``."""
    parts = [inputs_of(batch.view(name)) if name else batch.inputs for name in (*inputs, *views)]
    if len(parts) == 1:
        return parts[0]
    if not all(isinstance(part, Tensor) for part in parts):
        raise InputError("Views need batches whose inputs are one tensor.")
    return torch.cat(parts)


def headed(name: str, outputs: Outputs) -> dict[str, Outputs]:
    """Return the outputs of a network's heads by name: the main one ``name``, others ``name_HEAD``."""
    further = {}
    for head, branch in outputs.heads.items():
        views = {
            view: dataclasses.replace(seen.heads[head], index=seen.index, target=seen.target, mix=seen.mix)
            for view, seen in outputs.views.items()
        }
        further[f"{name}_{head}"] = dataclasses.replace(branch, index=outputs.index, views=views)
    views = {view: dataclasses.replace(seen, heads={}) for view, seen in outputs.views.items()}
    return {name: dataclasses.replace(outputs, heads={}, views=views), **further}
