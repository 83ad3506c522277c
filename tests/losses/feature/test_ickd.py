"""ICKD against plain loops."""

import pytest
import torch

from kdlab.errors import InputError
from kdlab.losses import ICKD
from tests.losses.slow import dot, draw, tapped

NO_TARGET = torch.zeros(1)


def slow(student, teacher):
    """The sum over samples of squared differences of correlations with rows of norm 1."""
    total = 0.0
    for ours, theirs in zip(student.flatten(2).tolist(), teacher.flatten(2).tolist(), strict=True):
        for first, second in zip(ours, theirs, strict=True):
            rows = [dot(first, other) for other in ours], [dot(second, other) for other in theirs]
            rows = [[value / dot(row, row) ** 0.5 for value in row] for row in rows]
            total += sum((a - b) ** 2 for a, b in zip(*rows, strict=True))
    return total


@pytest.mark.parametrize(("scale", "count"), [("torchdistill", 4 * 9), ("sample", 4 * 3), ("paper", 16 * 3)])
def test_value_and_scale(scale, count):
    ours, theirs = draw(3, 4, 3, 3, seed=1), draw(3, 4, 2, 2, seed=2)
    loss = ICKD(scale)(tapped(ours), tapped(theirs), NO_TARGET)
    assert loss.item() == pytest.approx(slow(ours, theirs) / count, rel=1e-11)


def test_layers_are_summed():
    ours, theirs = (tuple(draw(3, c, 3, 3, seed=seed + c) for c in (2, 4)) for seed in (0, 10))
    each = [ICKD()(tapped(x), tapped(y), NO_TARGET) for x, y in zip(ours, theirs, strict=True)]
    assert ICKD()(tapped(*ours), tapped(*theirs), NO_TARGET).item() == pytest.approx(sum(each).item())


def test_embed_matches_channels_with_batch_normalization():
    ours, theirs, loss = draw(3, 2, 3, 3, seed=1), draw(3, 4, 3, 3, seed=2), ICKD("sample", embed=True)
    value = loss(tapped(ours), tapped(theirs), NO_TARGET)
    weight = loss.embeddings[0].conv.weight.flatten(1)
    mapped = torch.einsum("oi,bihw->bohw", weight, ours)
    mean, spread = mapped.mean((0, 2, 3), keepdim=True), mapped.var((0, 2, 3), unbiased=False, keepdim=True)
    assert value.item() == pytest.approx(slow((mapped - mean) / (spread + 1e-5).sqrt(), theirs) / 12, rel=1e-10)
    value.backward()
    assert all(parameter.grad is not None for parameter in loss.parameters())
    assert len(list(loss.parameters())) == 3  # no bias before the normalization


def test_a_dead_channel_has_a_finite_gradient():
    ours = draw(2, 3, 2, 2).float()
    ours[:, 0] = 0
    ours.requires_grad_()
    ICKD()(tapped(ours), tapped(torch.rand(2, 3, 2, 2)), NO_TARGET).backward()
    assert ours.grad.isfinite().all()


def test_invalid_inputs_raise_input_error():
    ours, theirs = tapped(draw(2, 3, 2, 2), names=("low",)), tapped(draw(2, 4, 2, 2), names=("high",))
    with pytest.raises(InputError, match=r"'low' gives \(2, 3, 2, 2\).*use ICKD\(embed=True\)"):
        ICKD()(ours, theirs, NO_TARGET)
    with pytest.raises(InputError, match="scale must be 'torchdistill', 'sample' or 'paper', not 'mean'"):
        ICKD("mean")
    one = tapped(draw(1, 3, 1, 1)), tapped(draw(1, 4, 1, 1))
    with pytest.raises(InputError, match="more than one value per channel"):
        ICKD(embed=True)(*one, NO_TARGET)
