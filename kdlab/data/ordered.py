"""The base of LightningDataModules whose batches are a function of (seed, epoch), with exact resume."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, cast

import pytorch_lightning as pl
from torch.utils.data import Dataset

from kdlab.data.loader import Loader, loader
from kdlab.data.samplers import InOrder, Shuffled, check_batch_size
from kdlab.errors import InputError
from kdlab.outputs import Batch


class OrderedData(pl.LightningDataModule):
    """Three splits in loaders whose order is a function of (seed, epoch) and whose position is in the checkpoint.

    A subclass fills ``_sets`` and ``sizes`` in ``setup``; ``_sets[split][draw]`` is a full batch.

    Args:
        batch_size: samples in a training batch, over all processes together.
        eval_batch_size: the same for validation, test and prediction.
        seed: seed of the order and of the subsets.
        drop_last: leave out the last training batch of an epoch if it is smaller.

    Attributes:
        sizes: number of samples of "train", "val" and "test"; known after ``setup``.

    Raises:
        InputError: a batch size below 1.
    """

    num_workers: int = 0
    samples: ClassVar[str] = "samples"

    def __init__(self, batch_size: int, eval_batch_size: int, seed: int, drop_last: bool) -> None:
        super().__init__()
        self.batch_size = check_batch_size("batch_size", batch_size)
        self.eval_batch_size = check_batch_size("eval_batch_size", eval_batch_size)
        self.seed = seed
        self.drop_last = drop_last
        self.sizes: dict[str, int] = {}
        self._sets: dict[str, Dataset[Batch]] = {}

    def train_loader(self, dataset: Dataset[Batch], shuffled: Callable[..., Shuffled] = Shuffled) -> Loader:
        """Return a loader of training batches of ``dataset``, in the order of a sampler made by ``shuffled``."""
        rank, world_size, epoch, overfit = 0, 1, 0, False
        if self.trainer is not None:
            rank, world_size, epoch = self.trainer.global_rank, self.trainer.world_size, self.trainer.current_epoch
            overfit = getattr(self.trainer, "overfit_batches", 0) > 0  # the same batches each epoch
        kind = InOrder if overfit else shuffled
        order = kind(self.sizes["train"], self.batch_size, self.seed, rank, world_size, self.drop_last)
        order.set_epoch(epoch)
        batches = loader(dataset, order, self.num_workers)
        if self.trainer is not None:
            order.ran, batches.true_epoch = self._ran, self._true_epoch
        return batches

    def _ran(self) -> float:
        return cast(Any, self.trainer).num_training_batches  # type: ignore[no-any-return]

    def _true_epoch(self, epoch: int) -> int:
        # After resuming a run that max_steps ended together with an epoch, Lightning runs an empty epoch, and from then
        # on sets the sampler's epoch to one above current_epoch, which is the right one.
        progress = cast(Any, self.trainer).fit_loop.epoch_progress.current
        return int(progress.completed) if epoch == progress.processed else epoch

    def val_dataloader(self) -> Loader:
        """Return a loader of the validation split, each sample once."""
        return self._eval_loader("val")

    def test_dataloader(self) -> Loader:
        """Return a loader of the test split, each sample once."""
        return self._eval_loader("test")

    def predict_dataloader(self) -> Loader:
        """Return a loader of the test split, each sample once."""
        return self._eval_loader("test")

    def _eval_loader(self, split: str) -> Loader:
        rank, world_size = (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)
        dataset = self._split(split)
        order = InOrder(self.sizes[split], self.eval_batch_size, self.seed, rank, world_size)
        return loader(dataset, order, self.num_workers)

    def _split(self, name: str) -> Dataset[Batch]:
        if name not in self._sets:
            raise InputError(f"The {name} {self.samples} are not read yet: call setup() first.")
        return self._sets[name]
