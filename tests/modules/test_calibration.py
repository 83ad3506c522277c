"""The calibration error that is reported has 15 bins of equal width, by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from kdlab import CoTrainer, Distiller
from tests.modules.tiny import trainer

CONFIDENCES = (0.52, 0.58, 0.62, 0.65, 0.72, 0.78, 0.85, 0.88, 0.95, 0.99)
RIGHT = (1, 0, 0, 1, 1, 0, 0, 1, 1, 0)


class Given(nn.Module):
    """Two classes whose logits are the inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs * self.scale


def loader() -> DataLoader[Any]:
    logits = torch.tensor([[math.log(p / (1 - p)), 0.0] for p in CONFIDENCES])
    return DataLoader(TensorDataset(logits, 1 - torch.tensor(RIGHT)), 4)


def by_hand(bins: int) -> float:
    """The sum over bins of the share of samples times |mean confidence - accuracy|."""
    error = 0.0
    for number in range(bins):
        inside = [(p, hit) for p, hit in zip(CONFIDENCES, RIGHT, strict=True) if int(p * bins) == number]
        error += abs(sum(p for p, _ in inside) - sum(hit for _, hit in inside)) / len(CONFIDENCES)
    return error


def test_calibration_error_has_15_bins() -> None:
    assert abs(by_hand(15) - by_hand(10)) > 0.05
    options = {"limit_val_batches": 1.0, "num_sanity_val_steps": 0}
    (student,) = trainer(**options).validate(Distiller(Given()), loader(), verbose=False)
    assert student["val/student_ece"] == pytest.approx(by_hand(15), abs=1e-6)
    (deployed,) = trainer(**options).validate(CoTrainer({"net": Given()}), loader(), verbose=False)
    assert deployed["val/deployed_ece"] == pytest.approx(by_hand(15), abs=1e-6)
