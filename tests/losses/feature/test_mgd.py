"""MGD against a slow reference, and its masks."""

import pytest
import torch

from kdlab.errors import InputError
from kdlab.losses import MGD
from tests.losses.slow import draw, tapped

NO_TARGET = torch.zeros(1)


def convolved(maps, weight, bias):
    """3 x 3 with padding 1 as nine shifted products."""
    padded = torch.nn.functional.pad(maps, (1, 1, 1, 1))
    height, width = maps.shape[2:]
    out = bias[:, None, None].expand(len(maps), -1, height, width)
    for i in range(3):
        for j in range(3):
            out = out + torch.einsum("oc,bchw->bohw", weight[:, :, i, j], padded[:, :, i : i + height, j : j + width])
    return out


def slow(student, teacher, mask, generator):
    hidden = convolved(student * mask, generator[0].weight, generator[0].bias).clamp(min=0)
    made = convolved(hidden, generator[2].weight, generator[2].bias)
    pairs = zip(made.flatten().tolist(), teacher.flatten().tolist(), strict=True)
    return sum((a - b) ** 2 for a, b in pairs) / len(teacher)


@pytest.mark.parametrize(("masked", "shape"), [("channels", (3, 5, 1, 1)), ("positions", (3, 1, 4, 3))])
def test_value(masked, shape):
    students, teachers = (draw(3, 5, 4, 3, seed=1), draw(3, 2, 4, 3, seed=3)), (draw(3, 5, 4, 3, seed=2),) * 2
    loss = MGD(0.5, masked)
    torch.manual_seed(1)
    loss(tapped(*students), tapped(*teachers), NO_TARGET)
    torch.manual_seed(4)
    value = loss(tapped(*students), tapped(*teachers), NO_TARGET)
    torch.manual_seed(4)
    masks = [torch.rand(shape), torch.rand(shape)]
    masks = [mask >= 0.5 if masked == "channels" else mask <= 0.5 for mask in masks]
    align = loss.aligned[1]
    wide = torch.einsum("oi,bihw->bohw", align.weight[:, :, 0, 0], students[1]) + align.bias[:, None, None]
    expected = slow(students[0], teachers[0], masks[0], loss.generators[0])
    expected += slow(wide, teachers[1], masks[1], loss.generators[1])
    assert value.item() == pytest.approx(expected, rel=1e-11)


@pytest.mark.parametrize(("masked", "shape"), [("channels", (50, 40, 1, 1)), ("positions", (50, 1, 8, 5))])
def test_the_share_masked_is_the_ratio(masked, shape):
    loss = MGD(0.15, masked)
    torch.manual_seed(0)
    kept = loss.keep_mask(loss.uniform(torch.zeros(50, 40, 8, 5)))
    assert kept.shape == shape
    assert kept.double().mean().item() == pytest.approx(0.85, abs=0.03)
    assert MGD(0).keep_mask(torch.tensor([0.0])).all()


@pytest.mark.parametrize("masked", ["channels", "positions"])
def test_a_number_at_the_limit_is_kept(masked):
    assert MGD(0.5, masked).keep_mask(torch.tensor([0.5])).all()


def test_bad_arguments_and_sizes():
    with pytest.raises(InputError, match="ratio must be below 1"):
        MGD(1.0)
    with pytest.raises(InputError, match="masked"):
        MGD(masked="pixels")
    for other in ((2, 2), (4, 2), (2, 4)):
        with pytest.raises(InputError, match="one height and width"):
            MGD()(tapped(torch.ones(2, 3, 4, 4)), tapped(torch.ones(2, 3, *other)), NO_TARGET)
