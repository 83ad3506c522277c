"""Seeding as a function of (seed, process, epoch, batch), so that a resumed run draws the same numbers."""

from __future__ import annotations

import hashlib
import random
from typing import Any

import numpy
import pytorch_lightning as pl
import torch

from kdlab.compat import count_steps


def reseed(device: torch.device, *place: int | None) -> None:
    """Seed the generators of torch (CPU and ``device``), Python and NumPy from (seed, process, epoch, batch).

    Lightning's checkpoints hold no random state, and one saved by the first process would not be that of the others.
    Seeding each step anew needs none: dropout in a run that was killed continues exactly, whatever validation, loaders
    and losses drew before. It costs about 0.01 ms.
    """
    digest = hashlib.blake2b(repr(place).encode(), digest_size=8).digest()
    seed = int.from_bytes(digest, "big")
    torch.default_generator.manual_seed(seed)  # torch.manual_seed costs 0.15 ms: it formats a stack trace for CUDA
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)
    random.seed(seed)
    numpy.random.seed(seed & 0xFFFFFFFF)


class SeededModule(pl.LightningModule):
    """A LightningModule whose randomness is a function of (seed, process, epoch, batch)."""

    _seed: int | None = None
    _ended = _iterating = False

    def agree_on_seed(self) -> None:
        """Draw the seed of a fit, the same for all processes."""
        if self._seed is None or self._ended:
            self._ended = False
            self._seed = self.trainer.strategy.broadcast(torch.initial_seed())

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the seed."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["kdlab_seed"] = self._seed

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Continue with the seed of the run that is resumed."""
        super().on_load_checkpoint(checkpoint)
        self._seed, self._ended = checkpoint.get("kdlab_seed"), False

    def on_fit_end(self) -> None:
        """Draw another seed in the next fit; a checkpoint saved until then is still of this one."""
        self._ended = True

    def on_train_start(self) -> None:
        """Expect the first epoch."""
        self._iterating = True

    def on_train_epoch_start(self) -> None:
        """Fix the order in which a user's own shuffling loader (without workers) draws this epoch."""
        reseed(self.device, self._seed, self.global_rank, self.current_epoch, -1)
        count_steps(self.trainer)
        if self._iterating:  # one draw of iter(loader), which for a fit's first epoch Lightning called before this hook
            torch.empty((), dtype=torch.int64).random_()
            self._iterating = False
