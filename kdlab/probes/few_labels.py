"""Accuracy of a backbone that is fine-tuned with few labels."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdlab.data.samplers import Draw
from kdlab.data.subsets import stratified
from kdlab.errors import InputError
from kdlab.outputs import Batch, Observer
from kdlab.probes.extraction import on_device


class _Classifier(nn.Module):
    """A backbone with a new linear layer on its embedding."""

    def __init__(self, backbone: nn.Module, width: int, classes: int) -> None:
        super().__init__()
        self.backbone, self.layer = backbone, nn.Linear(width, classes)
        self._observer = (Observer(backbone),)

    def forward(self, inputs: Any) -> Tensor:
        embedding = self._observer[0](inputs).embedding
        assert embedding is not None
        scores: Tensor = self.layer(embedding)
        return scores


def fine_tuned_accuracy(
    network: nn.Module,
    data: Any,
    share: float,
    epochs: int = 5,
    lr: float = 1e-3,
    batch_size: int = 64,
    seed: int = 0,
    steps: int = 100,
) -> float:
    """Return the test accuracy of a copy of a network that is fine-tuned on a share of the labels, from 0 to 1.

    A new linear layer and the whole network are trained with AdamW (weight decay 0.05) and one cycle of the learning
    rate, with the augmentation of the data.

    Args:
        network: the backbone; it stays as it is.
        data: data of kdlab with labels, set up; its validation samples are the test.
        share: part of the training labels, above 0 and at most 1; classes keep their proportions.
        epochs: passes over these samples.
        lr: highest learning rate.
        batch_size: samples in a batch.
        seed: of the subset, the new layer and the order.
        steps: at least so many, however few samples there are.

    Raises:
        InputError: a share out of range, or data without labels.
    """
    if not 0 < share <= 1:
        raise InputError(f"The share of labels is above 0 and at most 1, not {share}.")
    train = data._split("train")
    labels: Tensor = train.labels
    if not bool(labels.ge(0).all()):
        raise InputError("Fine-tuning needs labels: name a data set that has them.")
    count = max(round(share * len(labels)), 1)
    rows = stratified(labels, count, seed) if count < len(labels) else torch.arange(len(labels))
    backbone = copy.deepcopy(network).train()
    device = next(backbone.parameters()).device
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        width = _width(backbone, data, train, rows, device)
        model = _Classifier(backbone, width, data.num_classes).to(device)
        total = max(epochs * -(-count // batch_size), steps)
        optimizer = torch.optim.AdamW(model.parameters(), lr, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=total)
        done, epoch = 0, 0
        while done < total:
            for part in torch.split(rows[torch.randperm(count)], batch_size):
                if done == total or (len(part) == 1 and count > 1):  # BatchNorm needs two
                    continue
                batch = data.prepare(_batch(train, part, epoch, device), epoch)
                loss = F.cross_entropy(model(batch.inputs), batch.target)
                optimizer.zero_grad()
                torch.autograd.backward(loss)
                optimizer.step()
                schedule.step()
                done += 1
            epoch += 1
            if count == 1 and epoch > total:
                break
    model.eval()
    right, seen = 0, 0
    with torch.no_grad():
        for raw in data.val_dataloader():
            batch = data.prepare(on_device(Batch.of(raw), device))
            right += int((model(batch.inputs).argmax(1) == batch.target).sum())
            seen += len(batch.target)
    return right / seen


def _batch(train: Any, rows: Tensor, epoch: int, device: torch.device) -> Batch:
    return on_device(train[Draw(rows, epoch)], device)


def _width(backbone: nn.Module, data: Any, train: Any, rows: Tensor, device: torch.device) -> int:
    batch = data.prepare(_batch(train, rows[:2].repeat(2)[:2], 0, device))
    with torch.no_grad():
        embedding = Observer(copy.deepcopy(backbone).eval())(batch.inputs).embedding
    if embedding is None or embedding.dim() != 2:
        raise InputError("The network gives no embedding (B, D): see `kdlab layers`.")
    return embedding.shape[1]
