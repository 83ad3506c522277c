"""Embeddings of a whole data set."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from kdlab.errors import InputError
from kdlab.outputs import Batch, Observer, Outputs


class Features(NamedTuple):
    """Embeddings (N, D) float32 and labels (N,) int64 of N samples, on the CPU."""

    embedding: Tensor
    labels: Tensor


def features_of(network: nn.Module | Callable[[Batch], Outputs], batches: Iterable[Batch]) -> Features:
    """Return a network's embeddings of all samples, in eval mode; its mode is restored.

    Args:
        network: a network, or a function of a batch that gives outputs, such as a frozen teacher with its own
            preprocessing.
        batches: prepared batches, on the network's device.

    Raises:
        InputError: the network gives no embedding (B, D), or there is no sample.
    """
    observe: Callable[[Batch], Outputs]
    if isinstance(network, nn.Module):
        modes = {part: part.training for part in network.modules()}
        observer = Observer(network.eval())
        observe = lambda batch: observer(batch.inputs)  # noqa: E731  # a name for both
    else:
        modes, observe = {}, network
    rows, labels = [], []
    try:
        with torch.no_grad():
            for batch in batches:
                embedding = observe(batch).embedding
                if embedding is None or embedding.dim() != 2:
                    raise InputError("The network gives no embedding (B, D): see `kdlab layers`.")
                rows.append(embedding.float().cpu())
                labels.append(batch.target.cpu())
    finally:
        for part, mode in modes.items():
            part.training = mode
    if not rows:
        raise InputError("There is no sample to evaluate the features on.")
    return Features(torch.cat(rows), torch.cat(labels))


def on_device(batch: Batch, device: torch.device) -> Batch:
    """Return a batch with inputs, labels and index on a device."""
    index = None if batch.index is None else batch.index.to(device)
    return batch._replace(inputs=batch.inputs.to(device), target=batch.target.to(device), index=index)
