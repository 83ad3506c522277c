"""Paraphraser and FactorTransfer against slow references, and how one finds the other."""

import math

import pytest
import torch
from torch import nn

from kdlab.errors import InputError
from kdlab.losses import FactorTransfer, Hint, Paraphraser
from kdlab.losses.context import Context
from tests.losses.slow import dot, draw, tapped

NO_TARGET = torch.zeros(1)


def convolved(maps, weight, bias):
    """3 x 3 with padding 1 as nine shifted products."""
    padded = nn.functional.pad(maps, (1, 1, 1, 1))
    height, width = maps.shape[2:]
    out = bias[:, None, None].expand(len(maps), -1, height, width)
    for i in range(3):
        for j in range(3):
            out = out + torch.einsum("oc,bchw->bohw", weight[:, :, i, j], padded[:, :, i : i + height, j : j + width])
    return out


def leaky(x):
    return torch.where(x > 0, x, 0.1 * x)


def encoded(loss, maps):
    for i in (0, 2, 4):
        maps = leaky(convolved(maps, loss.encoder[i].weight, loss.encoder[i].bias))
    return maps


def slow(ours, theirs, whole=False):
    total = count = 0
    for pair in zip(ours, theirs, strict=True):
        vectors = []
        for factor in pair:
            rows = [channel.flatten().tolist() for channel in factor]
            activity = [dot(column, column) / len(column) for column in zip(*rows, strict=True)]
            values = [value for row in rows for value in row] if whole else activity
            vectors.append([value / math.sqrt(dot(values, values)) for value in values])
        total += sum(abs(a - b) for a, b in zip(*vectors, strict=True))
        count += len(vectors[0])
    return total / count


def ready(paraphraser, **given):
    loss = FactorTransfer(**given)
    loss.setup(Context(nn.Identity(), (nn.Identity(),), losses={"paraphraser": paraphraser}))
    return loss


def test_reconstruction():
    maps, loss = draw(2, 6, 4, 3), Paraphraser(0.5)
    value = loss(tapped(maps), tapped(maps), NO_TARGET)
    value.backward()
    rebuilt = encoded(loss, maps)
    assert rebuilt.shape[1] == 3
    for i in (0, 2, 4):  # a transposed 3 x 3 with padding 1 is the convolution with turned weights
        weight = loss.decoder[i].weight.transpose(0, 1).flip(2, 3)
        rebuilt = leaky(convolved(rebuilt, weight, loss.decoder[i].bias))
    pairs = list(zip(rebuilt.flatten().tolist(), maps.flatten().tolist(), strict=True))
    assert value.item() == pytest.approx(sum((a - b) ** 2 for a, b in pairs) / len(pairs), rel=1e-10)
    assert all(parameter.grad.any() for parameter in loss.parameters())


@pytest.mark.parametrize("whole", [False, True])
def test_transfer(whole):
    student, teacher = draw(3, 2, 4, 3, seed=1), draw(3, 6, 4, 3, seed=2)
    paraphraser = Paraphraser(0.5)
    loss = ready(paraphraser, whole=whole)
    value = loss(tapped(student), tapped(teacher), NO_TARGET)
    value.backward()
    ours = student
    for i in (0, 3, 6):
        ours = convolved(ours, loss.translator[i].weight, loss.translator[i].bias)
        spread = (ours.var((0, 2, 3), correction=0, keepdim=True) + 1e-5).sqrt()
        ours = leaky((ours - ours.mean((0, 2, 3), keepdim=True)) / spread)
    assert value.item() == pytest.approx(slow(ours, encoded(paraphraser, teacher), whole), rel=1e-9)
    assert all(parameter.grad is not None for parameter in loss.parameters())
    assert all(parameter.grad is None for parameter in paraphraser.parameters())


def test_the_larger_factor_is_pooled():
    ours, theirs = draw(2, 3, 4, 4, seed=1), draw(2, 3, 2, 2, seed=2)
    halved = torch.stack([ours[:, :, h::2, w::2] for h in (0, 1) for w in (0, 1)]).mean(0)
    assert FactorTransfer().distance(ours, theirs).item() == pytest.approx(slow(halved, theirs), rel=1e-11)


def test_the_scale_of_a_factor_does_not_matter():
    ours, theirs = draw(2, 3, 4, 4, seed=1), draw(2, 3, 4, 4, seed=2)
    values = [FactorTransfer().distance(scale * ours, theirs).item() for scale in (1.0, 1e-4)]
    assert values[0] == pytest.approx(values[1], rel=1e-9)


def test_the_paraphraser_is_shared_not_owned():
    paraphraser = Paraphraser()
    loss, maps = ready(paraphraser), draw(2, 4, 4, 4)
    first = loss(tapped(maps), tapped(maps), NO_TARGET)
    assert {name.split(".")[0] for name in loss.state_dict()} == {"_extra_state", "translator"}
    with torch.no_grad():
        for parameter in paraphraser.parameters():
            parameter.mul_(2)
    assert loss(tapped(maps), tapped(maps), NO_TARGET) != first


def test_a_paraphraser_in_half_precision_serves_a_loss_in_full():
    paraphraser, maps = Paraphraser(), draw(2, 4, 4, 4).float()
    paraphraser(tapped(maps), tapped(maps), NO_TARGET)
    paraphraser.bfloat16()
    assert ready(paraphraser)(tapped(maps), tapped(maps), NO_TARGET).dtype is torch.float32


def test_incompatible_inputs_raise_input_error():
    maps, wide = tapped(torch.rand(2, 4, 4, 4)), tapped(torch.rand(2, 6, 4, 4))
    with pytest.raises(InputError, match="no paraphraser yet"):
        FactorTransfer()(maps, maps, NO_TARGET)
    with pytest.raises(InputError, match=r"named 'paraphraser' whose loss is Paraphraser"):
        ready(Hint())
    paraphraser = Paraphraser()
    loss = ready(paraphraser)
    loss(maps, maps, NO_TARGET)
    with pytest.raises(InputError, match="Paraphraser was set up for sizes 4, but now meets 6"):
        loss(maps, wide, NO_TARGET)
    with pytest.raises(InputError, match="one pair of layers, but 2 are tapped"):
        loss(tapped(*maps.layers, *maps.layers), tapped(*maps.layers, *maps.layers), NO_TARGET)
    (teacher_map,) = maps.layers
    for wrong in (tapped(teacher_map, teacher_map), tapped(teacher_map[:, :, None]), tapped(teacher_map[:, :, 0, 0])):
        with pytest.raises(InputError, match="Paraphraser needs one teacher layer"):
            paraphraser(maps, wrong, NO_TARGET)
    assert Paraphraser(rate=0.25).factors(4) == 1
    with pytest.raises(InputError, match=r"rate=0.1 leaves no channel of 4"):
        Paraphraser(0.1)(maps, maps, NO_TARGET)
    with pytest.raises(InputError, match="rate"):
        Paraphraser(0)
