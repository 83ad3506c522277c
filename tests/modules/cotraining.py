"""What the tests of co-training share: networks that learn together, and one step of them."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from kdlab import CoTrainer, Knowledge
from kdlab.losses import SoftTargets
from kdlab.models import Branched, resnet8
from kdlab.outputs import Batch, Outputs
from kdlab.schedules import Progress
from tests.modules.tiny import digits, network, sgd, trainer


def soft(temperature: float = 2.0, weight: float = 1.0, **options: Any) -> dict[str, Knowledge]:
    return {"soft": Knowledge(SoftTargets(temperature, **options), weight)}


def peers(count: int = 2) -> dict[str, nn.Module]:
    return {name: network(seed) for seed, name in enumerate("abc"[:count])}


def cotrainer(networks: dict[str, nn.Module] | None = None, **options: Any) -> CoTrainer:
    defaults: dict[str, Any] = {"knowledge": soft(), "optimizer": sgd}
    return CoTrainer(networks or peers(), **(defaults | options))


def image_net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return resnet8(10, in_channels=1)


def branched(**options: Any) -> Branched:
    return Branched(image_net(), "layer3", **({"branches": 3} | options))


def steps(module: CoTrainer, count: int = 2, **options: Any) -> pl.Trainer:
    run = trainer(max_steps=count, **options)
    run.fit(module, digits())
    return run


def one_batch(module: CoTrainer) -> tuple[CoTrainer, dict[str, Any], Batch]:
    """A module that has been set up, in train mode, its outputs on a batch, and the batch."""
    data = digits()
    data.setup()
    batch = data.prepare(next(iter(data.train_dataloader())))._replace(progress=Progress(0, 0))
    module.train()
    outputs = module.observe(batch)
    return module, outputs, batch


class Product(nn.Module):
    """A loss that does not cut its teacher from the graph: the mean over samples of the logits' scalar product."""

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        return (student.logits * teacher.logits).sum(1).mean()
