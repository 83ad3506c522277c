"""OFD against plain loops, and where its margins come from."""

import math
from statistics import NormalDist

import pytest
import torch
from torch import nn

from kdlab.errors import InputError
from kdlab.losses import OFD
from kdlab.losses.context import Context
from kdlab.models import resnet8, resnet20
from tests.losses.slow import draw, tapped

NO_TARGET = torch.zeros(1)


def expected_below_zero(mean, deviation, steps=200_000):
    """E[x | x < 0] by the midpoint rule."""
    below = NormalDist(mean, deviation).cdf(0)
    if below <= 0.001:
        return -3 * deviation
    low = min(mean - 12 * deviation, -12 * deviation)
    step, density = -low / steps, NormalDist(mean, deviation).pdf
    return sum(x * density(x) for x in (low + (i + 0.5) * step for i in range(steps))) * step / below


def norm(weight, bias):
    made = nn.BatchNorm2d(len(weight))
    made.weight.data, made.bias.data = torch.tensor(weight), torch.tensor(bias)
    return made


def setup(loss, teacher, *layers):
    loss.setup(Context(teacher, (teacher,), teacher_layers=layers))
    return loss


def slow(students, teachers, margins):
    total = 0.0
    for i, (student, teacher) in enumerate(zip(students, teachers, strict=True)):
        for b, c, h, w in torch.cartesian_prod(*map(torch.arange, teacher.shape)).tolist():
            ours, theirs = student[b, c, h, w].item(), max(teacher[b, c, h, w].item(), margins[i][c])
            if ours > theirs or theirs > 0:
                total += (ours - theirs) ** 2 / 2 ** (len(students) - 1 - i)
    return total / len(students[0])


def test_margins_are_the_expected_values_below_zero():
    weights, biases = [1.0, 0.5, -2.0, 1.5, 0.7, 0.1], [0.0, 0.7, -1.0, 2.5, 2.8, 5.0]
    loss = setup(OFD(), nn.Sequential(norm(weights, biases)), "0")
    expected = [expected_below_zero(b, abs(w)) for w, b in zip(weights, biases, strict=True)]
    assert expected[-2:] == pytest.approx([-2.1, -0.3])
    assert loss.margins.tolist() == pytest.approx(expected, rel=1e-5)


def test_a_norm_without_weights_is_standard_normal():
    loss = setup(OFD(), nn.Sequential(nn.BatchNorm2d(2, affine=False)), "0")
    assert loss.margins.tolist() == pytest.approx([-((2 / math.pi) ** 0.5)] * 2)


def test_layers_count_twice_as_much_as_those_before():
    student, teacher, values = draw(2, 1, 3, 3, seed=1), draw(2, 1, 3, 3, seed=2), []
    for layers in (1, 3):
        loss = setup(OFD(), nn.Sequential(*(nn.BatchNorm2d(1) for _ in range(3))), *"012"[:layers])
        sides = tapped(*[student] * layers), tapped(*[teacher] * layers)
        loss(*sides, NO_TARGET)
        for connect in loss.connectors:
            nn.init.ones_(connect.conv.weight)
        values.append(loss(*sides, NO_TARGET).item())
    assert values[0] > 0
    assert values[1] == pytest.approx(values[0] * (1 + 1 / 2 + 1 / 4), rel=1e-9)


def test_a_channel_without_spread_has_a_finite_margin():
    loss = setup(OFD(), nn.Sequential(norm([0.0, 0.0, 0.0], [-2.0, 0.0, 2.0])), "0")
    assert loss.margins.tolist() == pytest.approx([-2.0, 0.0, 0.0], abs=1e-6)


def test_value_of_two_layers():
    students, teachers = ([draw(3, c, 4, 2, seed=c + i) for c in (2, 4)] for i in (0, 10))
    teachers[1][0] = 0.0  # not positive: a student below it is left alone
    teacher = nn.Sequential(norm([1.0, 0.5], [0.2, -0.3]), norm([1.0, 2.0, 0.5, 1.0], [0.0, 1.0, 0.0, -1.0]))
    loss = setup(OFD(), teacher, "0", "1")
    value = loss(tapped(*students), tapped(*teachers), NO_TARGET)
    value.backward()
    connected = []
    for connect, student in zip(loss.connectors, students, strict=True):
        out = torch.einsum("oi,bihw->bohw", connect.conv.weight[:, :, 0, 0], student)
        spread = (out.var((0, 2, 3), correction=0, keepdim=True) + 1e-5).sqrt()
        connected.append((out - out.mean((0, 2, 3), keepdim=True)) / spread)
    margins = loss.margins.tolist()
    assert value.item() == pytest.approx(slow(connected, teachers, [margins[:2], margins[2:]]), rel=1e-9)
    assert all(parameter.grad is not None for parameter in loss.parameters())
    assert connect.conv.bias is None


def test_first_values_have_the_deviation_of_the_released_code():
    loss = setup(OFD(), nn.Sequential(nn.BatchNorm2d(300)), "0")
    loss(tapped(torch.rand(2, 200, 2, 2)), tapped(torch.rand(2, 300, 2, 2)), NO_TARGET)
    assert loss.connectors[0].conv.weight.std().item() == pytest.approx((2 / 300) ** 0.5, rel=0.03)


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        ("layer3.2.preact", "layer3.2.bn2"),
        ("layer2.0.preact", "layer2.0.bn2"),  # not that of the shortcut, which comes later
        ("layer2.0.relu1", "layer2.0.bn1"),
        ("layer1", "layer1.2.bn2"),
        ("relu", "bn1"),
        ("layer1.0.bn1", "layer1.0.bn1"),
    ],
)
def test_the_norm_of_a_layer(layer, expected):
    teacher = resnet20(10)
    for module in teacher.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.bias)
    found = setup(OFD(), teacher, layer).margins
    assert torch.equal(found, setup(OFD([expected]), teacher, layer).margins)


def test_margins_move_with_the_loss_and_stay_out_of_the_state():
    loss = setup(OFD(), resnet8(10), "layer1.0.preact")
    assert "margins" in dict(loss.named_buffers())
    assert "margins" not in loss.state_dict()


def test_incompatible_inputs_raise_input_error():
    plain = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU())
    with pytest.raises(InputError, match=r"'1' is no batch normalization.*norms"):
        setup(OFD(), plain, "1")
    with pytest.raises(InputError, match="'0' is no batch normalization"):
        setup(OFD(["0"]), plain, "1")
    with pytest.raises(InputError, match="norms must name one layer for each of 1 tapped ones, not 2"):
        setup(OFD(["0", "0"]), plain, "1")
    maps = tapped(torch.ones(2, 3, 4, 4))
    with pytest.raises(InputError, match=r"setup\(context\)"):
        OFD()(maps, maps, NO_TARGET)
    loss = setup(OFD(), nn.Sequential(nn.BatchNorm2d(3)), "0")
    small = tapped(torch.ones(2, 3, 4, 2))
    for student, teacher in ((maps, small), (small, maps)):
        with pytest.raises(InputError, match="one height and width"):
            loss(student, teacher, NO_TARGET)
    with pytest.raises(InputError, match=r"\[3\] channels.*have \[5\]"):
        loss(maps, tapped(torch.ones(2, 5, 4, 4)), NO_TARGET)
