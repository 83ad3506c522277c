"""MiniLM v1 and v2 against plain loops."""

import math

import pytest
import torch

from kdlab.errors import InputError
from kdlab.losses import MiniLM, MiniLMv2
from kdlab.outputs import Outputs
from tests.losses.slow import dot, draw, kl, softmax

NO_TARGET = torch.zeros(1)
MASK = torch.tensor([[1, 1, 0], [1, 1, 1]])


def side(layers, mask=None):
    return Outputs(torch.zeros(len(layers[0]), 2), tuple(layers), mask=mask)


def relations(left, right, heads, mask, b, i):
    """The distribution over the keys that count, of query i of sample b, for each head."""
    width = left.shape[2] // heads
    keys = [j for j in range(left.shape[1]) if mask[b, j]]
    for a in range(heads):
        part = slice(a * width, (a + 1) * width)
        yield softmax([dot(left[b, i, part].tolist(), right[b, j, part].tolist()) / math.sqrt(width) for j in keys])


def slow(ours, theirs, pairs, heads, mask):
    total = 0.0
    for left, right in pairs:
        values = []
        for b in range(len(mask)):
            for i in range(mask.shape[1]):
                if mask[b, i]:
                    both = (relations(x[left], x[right], heads, mask, b, i) for x in (theirs, ours))
                    values += [kl(p, q) for p, q in zip(*both, strict=True)]
        total += sum(values) / len(values)
    return total


LOSSES = {
    "v1": (MiniLM, ((0, 1), (2, 2))),
    "v2": (MiniLMv2, ((0, 0), (1, 1), (2, 2))),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("heads", [1, 2, 4])
@pytest.mark.parametrize("mask", [None, MASK])
def test_value(name, heads, mask):
    kind, pairs = LOSSES[name]
    ours, theirs = [draw(2, 3, 8, seed=s) for s in range(3)], [draw(2, 3, 12, seed=s) for s in range(3, 6)]
    expected = slow(ours, theirs, pairs, heads, torch.ones(2, 3) if mask is None else mask)
    if mask is not None:
        for x in (*ours, *theirs):
            x[0, 2] = math.nan  # padding may hold anything
    ours[0].requires_grad_()
    value = kind(heads)(side(ours, mask), side(theirs), NO_TARGET)
    value.backward()
    assert value.item() == pytest.approx(expected, rel=1e-10)
    assert ours[0].grad.isfinite().all()


@pytest.mark.parametrize("name", LOSSES)
def test_states_split_by_heads_are_the_same(name):
    kind, _ = LOSSES[name]
    ours, theirs = [draw(2, 3, 8, seed=s) for s in range(3)], [draw(2, 3, 12, seed=s) for s in range(3, 6)]
    split = [[x.unflatten(2, (2, -1)).transpose(1, 2) for x in layers] for layers in (ours, theirs)]
    expected = kind(2)(side(ours), side(theirs), NO_TARGET)
    assert kind(2)(side(split[0]), side(split[1]), NO_TARGET).item() == pytest.approx(expected.item(), rel=1e-14)


@pytest.mark.parametrize("name", LOSSES)
def test_all_masked_is_zero_with_zero_gradient(name):
    layers = [draw(2, 3, 8, seed=s).requires_grad_() for s in range(3)]
    value = LOSSES[name][0](2)(side(layers, torch.zeros(2, 3)), side([draw(2, 3, 8)] * 3), NO_TARGET)
    value.backward()
    assert value.item() == 0
    assert all(not x.grad.any() and x.grad.isfinite().all() for x in layers)


@pytest.mark.parametrize("name", LOSSES)
def test_what_does_not_fit_is_refused(name):
    kind, _ = LOSSES[name]
    layers = [draw(2, 3, 8)] * 3
    with pytest.raises(InputError, match="'query' is 8 wide, which 3 heads do not divide"):
        kind(3)(side(layers), side(layers), NO_TARGET)
    with pytest.raises(InputError, match="2 student layers are tapped"):
        kind(2)(side(layers[:2]), side(layers), NO_TARGET)
    with pytest.raises(InputError, match="3 positions and the teacher 2 samples, 2 heads, 4 positions"):
        kind(2)(side(layers), side([draw(2, 4, 8)] * 3), NO_TARGET)
    with pytest.raises(InputError, match="heads"):
        kind(0)
