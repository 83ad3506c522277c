"""A tiny in-memory image set, a module that records its training batches, and a trainer for both."""

from __future__ import annotations

import hashlib
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor, nn

from kdlab.data import ImageData
from kdlab.outputs import Batch


class Tiny(ImageData):
    """21 training and 21 test images of 4x5 random pixels in two channels; 3 classes."""

    num_classes = 3
    shape = (2, 4, 5)

    def __init__(self, size: int = 21, num_workers: int = 0, **options: Any) -> None:
        super().__init__(mean=[0.25, 0.5], std=[0.5, 0.125], **({"batch_size": 4, "eval_batch_size": 4} | options))
        self.size = size
        self.num_workers = num_workers

    def read(self, train: bool) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(int(train))
        images = torch.randint(0, 256, (self.size, *self.shape), generator=generator, dtype=torch.uint8)
        return images, torch.arange(self.size) % 3


class KilledError(Exception):
    """Simulates kill -9."""


class Notes(pl.LightningModule):
    """Records epoch, samples and exact pixels of every training batch."""

    def __init__(self, kill_after: int = 10**9) -> None:
        super().__init__()
        self.net = nn.Linear(2 * 4 * 5, 3)
        self.seen: list[tuple[int, list[int], str]] = []
        self.evaluated: list[int] = []
        self.pixels: list[Tensor] = []
        self.kill_after = kill_after

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        if len(self.seen) == self.kill_after:
            raise KilledError
        assert batch.index is not None
        pixels = hashlib.md5(batch.inputs.float().contiguous().numpy().tobytes()).hexdigest()
        self.seen.append((self.trainer.current_epoch, batch.index.tolist(), pixels))
        return nn.functional.cross_entropy(self.net(batch.inputs.flatten(1)), batch.target)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        assert batch.index is not None
        self.evaluated += batch.index.tolist()
        self.pixels += list(batch.inputs)

    test_step = validation_step

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        assert batch.index is not None
        return batch.index

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def trainer(
    folder: Any, every: int | None = None, epochs: bool = False, after_training: bool = True, **options: Any
) -> pl.Trainer:
    """A silent CPU trainer; it saves ``step=N.ckpt`` in ``folder`` ``every`` steps, or ``epoch=N.ckpt`` every epoch."""
    callbacks: list[pl.Callback] = []
    if every:
        callbacks.append(ModelCheckpoint(folder, filename="{step}", every_n_train_steps=every, save_top_k=-1))
    if epochs:
        end = {"every_n_epochs": 1, "save_on_train_epoch_end": after_training}
        callbacks.append(ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1, **end))
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return pl.Trainer(callbacks=callbacks, enable_checkpointing=bool(callbacks), **(quiet | {"devices": 1} | options))
