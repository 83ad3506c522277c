"""Training batches of texts of similar length."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kdlab.data import counter_rng
from kdlab.data.samplers import Shuffled

BATCHES = 32
"""Batches whose texts are sorted by length together."""

GROUPS = 1 << 32  # a stream of its own of counter_rng


class LengthGroups(Shuffled):
    """Batches for training in which texts have similar lengths, so that little is padding.

    A new order each epoch: the shuffled texts are cut into pools of :data:`BATCHES` batches, each sorted by length,
    and the batches are then shuffled. The last batch of an epoch is the smaller one, if there is one. Within a batch
    processes take turns in the order of lengths, so that their shares take equally long.

    Args:
        lengths: (size,) int64 tokens of each text.
        options: arguments of :class:`~kdlab.data.samplers.Shuffled`.
    """

    def __init__(self, lengths: Tensor, *options: Any) -> None:
        super().__init__(*options)
        self.lengths = lengths

    def order(self, epoch: int) -> Tensor:
        """Return all positions in the order of an epoch, (size,) int64."""
        shuffled = super().order(epoch)
        pools = torch.split(shuffled, self.batch_size * BATCHES)
        batches = [
            batch
            for pool in pools
            for batch in torch.split(pool[self.lengths[pool].argsort(descending=True, stable=True)], self.batch_size)
        ]
        full = len(batches) - (len(batches[-1]) < self.batch_size)
        places = counter_rng.bits(self.seed, epoch, torch.arange(full), GROUPS).argsort(stable=True).tolist()
        turns = self.num_replicas
        ordered = [batches[place] for place in places] + batches[full:]
        return torch.cat([torch.cat([batch[first::turns] for first in range(turns)]) for batch in ordered])
