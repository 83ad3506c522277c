"""VkD against plain loops."""

import pytest
import torch

from kdlab.losses import VkD
from tests.losses.slow import dot, draw, embedded, smooth_l1

NO_TARGET = torch.zeros(1)


def normalized(row):
    mean = sum(row) / len(row)
    variance = sum((value - mean) ** 2 for value in row) / len(row)
    return [(value - mean) / (variance + 1e-5) ** 0.5 for value in row]


@pytest.mark.parametrize(("student", "teacher"), [(3, 5), (4, 4), (5, 3)])
def test_value(student, teacher):
    ours, theirs, loss = draw(4, student, seed=1, scale=3), draw(4, teacher, seed=2), VkD()
    value = loss(embedded(ours), embedded(theirs), NO_TARGET)
    weight = loss.projector.weight.tolist()
    pairs = zip(ours.tolist(), theirs.tolist(), strict=True)
    rows = [([dot(row, h) for row in weight], normalized(t)) for h, t in pairs]
    expected = sum(smooth_l1(a - b) for row in rows for a, b in zip(*row, strict=True))
    assert value.item() == pytest.approx(expected / theirs.numel(), rel=1e-11)


@pytest.mark.parametrize(("student", "teacher"), [(3, 5), (4, 4), (5, 3)])
def test_it_stays_orthogonal_while_it_learns(student, teacher):
    ours, theirs, loss = draw(8, student, seed=1), draw(8, teacher, seed=2), VkD()
    loss(embedded(ours), embedded(theirs), NO_TARGET)
    optimizer = torch.optim.SGD(loss.parameters(), lr=0.5, weight_decay=5e-4)
    before, values = loss.projector.weight.detach().clone(), []
    for _ in range(20):
        optimizer.zero_grad()
        value = loss(embedded(ours), embedded(theirs), NO_TARGET)
        value.backward()
        optimizer.step()
        values.append(value.item())
    weight = loss.projector.weight.detach()
    product = weight.T @ weight if student <= teacher else weight @ weight.T
    assert torch.allclose(product, torch.eye(len(product), dtype=torch.float64), atol=1e-6)
    assert not torch.allclose(weight, before, atol=1e-3)
    assert values[-1] < values[0]


def test_distances_between_students_are_kept():
    ours, loss = draw(5, 3, seed=1), VkD()
    loss(embedded(ours), embedded(draw(5, 6, seed=2)), NO_TARGET)
    assert torch.allclose(torch.pdist(loss.projector(ours)), torch.pdist(ours), rtol=1e-6)


def test_a_constant_teacher_is_finite():
    ours = torch.ones(2, 3, requires_grad=True)
    value = VkD()(embedded(ours), embedded(torch.full((2, 4), 7.0)), NO_TARGET)
    value.backward()
    assert value.isfinite()
    assert ours.grad.isfinite().all()
