"""SRRL against plain loops."""

import pytest
import torch
from torch import nn

from kdlab.errors import InputError
from kdlab.losses import SRRL
from kdlab.losses.context import Context
from kdlab.models import resnet8
from kdlab.outputs import observe
from tests.losses.slow import dot, draw, tapped

NO_TARGET = torch.zeros(1)


def ready(teacher: nn.Module, **given: float) -> SRRL:
    loss = SRRL(**given)
    loss.setup(Context(nn.Identity(), (teacher,)))
    return loss


def head(width: int = 4, classes: int = 5, bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(width, classes, bias=bias).double()


@pytest.mark.parametrize(("alpha", "beta", "bias"), [(1, 1, True), (1, 0, True), (0.5, 2, False)])
def test_value(alpha, beta, bias):
    ours, theirs, teacher = draw(3, 2, 4, 4, seed=1), draw(3, 4, 2, 2, seed=2), head(bias=bias)
    loss = ready(teacher, alpha=alpha, beta=beta)
    value = loss(tapped(ours), tapped(theirs), NO_TARGET)
    weight = loss.connector.conv.weight.flatten(1)
    mapped = torch.einsum("oi,bihw->bohw", weight, ours).detach()
    mean, spread = mapped.mean((0, 2, 3), keepdim=True), mapped.var((0, 2, 3), unbiased=False, keepdim=True)
    connected = ((mapped - mean) / (spread + 1e-5).sqrt()).clamp_min(0)
    means = [each.mean((2, 3)).tolist() for each in (connected, theirs)]
    rows, expected = teacher.weight.tolist(), 0.0
    for a, b in zip(*means, strict=True):
        expected += alpha * sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) / (3 * 4)
        expected += beta * sum((dot(row, a) - dot(row, b)) ** 2 for row in rows) / (3 * 5)
    assert value.item() == pytest.approx(expected, rel=1e-11)


def test_on_the_last_map_it_compares_with_the_teachers_logits():
    torch.manual_seed(0)
    teacher, images = resnet8(num_classes=5).eval(), torch.rand(4, 3, 8, 8)
    seen = observe(teacher, images, ["layer3"])
    loss = ready(teacher, alpha=0).eval()
    value = loss(seen, seen, NO_TARGET)
    ours = loss.connector(seen.layers[0]).mean((2, 3)) @ teacher.fc.weight.T + teacher.fc.bias
    assert torch.allclose(value, (ours - seen.logits).square().mean(), rtol=1e-4)


def test_the_classifier_is_a_frozen_copy_outside_of_the_state():
    teacher = head()
    loss = ready(teacher)
    sides = tapped(draw(3, 2, 4, 4, seed=1)), tapped(draw(3, 4, 2, 2, seed=2))
    loss(*sides, NO_TARGET).backward()
    assert teacher.weight.grad is None
    assert [name for name, _ in loss.named_parameters()] == [
        "connector.conv.weight",
        "connector.norm.weight",
        "connector.norm.bias",
    ]
    assert not any("classifier" in name for name in loss.state_dict())


def test_initial_values_are_the_authors():
    torch.manual_seed(0)
    loss = ready(head(200))
    loss(tapped(draw(2, 300, 2, 2)), tapped(draw(2, 200, 2, 2)), NO_TARGET)
    assert loss.connector.conv.weight.std().item() == pytest.approx((2 / 200) ** 0.5, rel=0.02)


def test_invalid_inputs_raise_input_error():
    ours, theirs = tapped(draw(3, 2, 4, 4)), tapped(draw(3, 4, 2, 2), names=("high",))
    with pytest.raises(InputError, match="call setup"):
        SRRL()(ours, theirs, NO_TARGET)
    with pytest.raises(InputError, match="teacher's classifier reads 3 channels, but layer 'high' has 4"):
        ready(head(3))(ours, theirs, NO_TARGET)
    with pytest.raises(InputError, match="not an ensemble of 2"):
        SRRL().setup(Context(nn.Identity(), (head(), head())))
    with pytest.raises(InputError, match="more than one value per channel"):
        ready(head())(tapped(draw(1, 2, 1, 1)), tapped(draw(1, 4, 1, 1)), NO_TARGET)
