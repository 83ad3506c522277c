"""PEFD against plain loops."""

import pytest
import torch

from kdlab.errors import InputError
from kdlab.losses import PEFD
from tests.losses.slow import dot, draw, embedded

NO_TARGET = torch.zeros(1)


@pytest.mark.parametrize("count", [1, 3])
def test_value(count):
    ours, theirs, loss = draw(4, 3, seed=1), draw(4, 5, seed=2), PEFD(projectors=count)
    value = loss(embedded(ours), embedded(theirs), NO_TARGET)
    assert len(loss.projectors) == count
    total = 0.0
    for h, t in zip(ours.tolist(), theirs.tolist(), strict=True):
        mean = [0.0] * 5
        for projector in loss.projectors:
            for d, (row, shift) in enumerate(zip(projector.weight.tolist(), projector.bias.tolist(), strict=True)):
                mean[d] += max(dot(row, h) + shift, 0.0) / count
        total += 1 - dot(mean, t) / (dot(mean, mean) * dot(t, t)) ** 0.5
    assert value.item() == pytest.approx(total / 4, rel=1e-11)


def test_every_projector_is_trained_from_its_own_values():
    loss = PEFD()
    loss(embedded(draw(4, 3, seed=1)), embedded(draw(4, 5, seed=2)), NO_TARGET).backward()
    weights = [projector.weight for projector in loss.projectors]
    assert all(weight.grad is not None for weight in weights)
    assert not any(torch.equal(weights[0], weight) for weight in weights[1:])


def test_inactive_projection_counts_1_with_finite_gradient():
    ours, loss = torch.ones(2, 3, requires_grad=True), PEFD(projectors=1)
    loss(embedded(ours), embedded(torch.ones(2, 4)), NO_TARGET)
    with torch.no_grad():
        loss.projectors[0].weight.fill_(1.0)
        loss.projectors[0].bias.fill_(-10.0)
    value = loss(embedded(ours), embedded(torch.ones(2, 4)), NO_TARGET)
    value.backward()
    assert value.item() == 1
    assert ours.grad.isfinite().all()


def test_invalid_inputs_raise_input_error():
    loss = PEFD()
    with pytest.raises(InputError, match="empty"):
        loss(embedded(torch.ones(0, 3)), embedded(torch.ones(0, 3)), NO_TARGET)
    loss(embedded(torch.ones(2, 3)), embedded(torch.ones(2, 4)), NO_TARGET)
    with pytest.raises(InputError, match=r"set up for sizes \(3, 4\), but now meets \(3, 5\)"):
        loss(embedded(torch.ones(2, 3)), embedded(torch.ones(2, 5)), NO_TARGET)
    with pytest.raises(InputError, match="projectors must be a whole number"):
        PEFD(projectors=1.5)
