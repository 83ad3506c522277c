"""The weight constraint of the teacher: the incoming weights of every hidden unit stay within a ball."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn


class MaxNorm(pl.Callback):
    """After every step, scale each hidden unit's incoming weights back to at most ``squared_length`` (squared length).

    Hinton, Srivastava, Krizhevsky, Sutskever, Salakhutdinov: Improving neural networks by preventing co-adaptation of
    feature detectors, 2012, arXiv:1207.0580. The output layer is left alone.
    """

    def __init__(self, squared_length: float = 15.0) -> None:
        self.length = squared_length**0.5

    @torch.no_grad()
    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Apply the constraint."""
        for name, module in pl_module.student.named_modules():
            if isinstance(module, nn.Linear) and name != "fc":
                length = torch.linalg.vector_norm(module.weight, dim=1, keepdim=True)
                module.weight.mul_((self.length / length.clamp(min=1e-12)).clamp(max=1.0))
