"""A run whose numbers are no numbers says so."""

from __future__ import annotations

import pytest
import torch

from kdlab import Distiller
from tests.modules.tiny import network, pairs, sgd, trainer


def test_a_loss_that_is_not_finite_is_reported() -> None:
    student = network()
    with torch.no_grad():
        student.fc.bias.fill_(torch.nan)  # type: ignore[union-attr,operator]
    module = Distiller(student, network(1), optimizer=sgd)
    with pytest.warns(UserWarning, match="The student's loss in val is nan, so its numbers mean nothing"):
        trainer(limit_val_batches=1.0).validate(module, pairs(), verbose=False)


def test_a_finite_one_is_not() -> None:
    trainer(limit_val_batches=1.0).validate(Distiller(network(), network(1), optimizer=sgd), pairs(), verbose=False)
