"""What validation and test remember of a frozen teacher."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kdlab.modules.evaluation import RememberedLogits


def not_again() -> Tensor:
    pytest.fail("computed again")


def test_flipped_and_reordered_inputs_are_other_inputs() -> None:
    remembered, x = RememberedLogits(), torch.arange(24.0).reshape(4, 1, 2, 3)
    for number, inputs in enumerate((x, x.flip(3), x.flip(2), x.flip(0))):
        logits = torch.full((4, 3), float(number))
        assert torch.equal(remembered.look(inputs, logits.clone), logits)
    assert torch.equal(remembered.look(x.clone(), not_again), torch.zeros(4, 3))
