"""FSP against plain loops."""

from itertools import pairwise

import pytest
import torch

from kdlab.errors import InputError
from kdlab.losses import FSP
from tests.losses.slow import draw, tapped

NO_TARGET = torch.zeros(1)


def product(first, second):
    channels, following, (height, width) = len(first), len(second), first.shape[1:]
    cells = [(h, w) for h in range(height) for w in range(width)]
    return [
        sum(first[c, h, w].item() * second[d, h, w].item() for h, w in cells) / len(cells)
        for c in range(channels)
        for d in range(following)
    ]


def slow(students, teachers):
    total = 0.0
    for (s, s_next), (t, t_next) in zip(pairwise(students), pairwise(teachers), strict=True):
        products = [(product(s[b], s_next[b]), product(t[b], t_next[b])) for b in range(len(s))]
        squares = [(x - y) ** 2 for ours, theirs in products for x, y in zip(ours, theirs, strict=True)]
        total += sum(squares) / len(squares)
    return total


def test_value_of_three_layers():
    students, teachers = ([draw(3, c, 4, 2, seed=c + i) for c in (2, 4, 3)] for i in (0, 10))
    loss = FSP()(tapped(*students), tapped(*teachers), NO_TARGET)
    assert loss.item() == pytest.approx(slow(students, teachers), rel=1e-11)


def test_the_larger_of_two_consecutive_maps_is_pooled():
    students, teachers = ([draw(2, 2, 4, 4, seed=i), draw(2, 3, 2, 2, seed=i + 1)] for i in (0, 10))
    loss = FSP()(tapped(*students), tapped(*teachers), NO_TARGET)
    halved = [
        [torch.stack([a[:, :, h::2, w::2] for h in (0, 1) for w in (0, 1)]).mean(0), b] for a, b in (students, teachers)
    ]
    assert loss.item() == pytest.approx(slow(*halved), rel=1e-11)


def test_one_layer_or_other_channels_raise_input_error():
    one, other = draw(2, 3, 4, 4), draw(2, 5, 4, 4)
    with pytest.raises(InputError, match="at least two"):
        FSP()(tapped(one), tapped(one), NO_TARGET)
    with pytest.raises(InputError, match=r"equal channels.*'b' gives \(2, 3, 4, 4\).*'d' gives \(2, 5, 4, 4\)"):
        FSP()(tapped(one, one, names=("a", "b")), tapped(one, other, names=("c", "d")), NO_TARGET)
