"""TinyBERT's attention and hidden states against plain loops."""

import math

import pytest
import torch

from kdlab.errors import InputError
from kdlab.losses import TinyBERTAttention, TinyBERTHidden
from kdlab.outputs import Outputs
from tests.losses.slow import draw

NO_TARGET = torch.zeros(1)
MASK = torch.tensor([[1, 1, 0], [1, 1, 1]])


def side(*layers, mask=None):
    return Outputs(torch.zeros(len(layers[0]), 2), layers, mask=mask)


def slow_attention(ours, theirs, mask):
    total, count = 0.0, 0
    for b in range(len(ours)):
        for a in range(ours.shape[1]):
            for i in range(ours.shape[2]):
                for j in range(ours.shape[2]):
                    if mask[b, i] and mask[b, j]:
                        total += (ours[b, a, i, j].item() - theirs[b, a, i, j].item()) ** 2
                        count += 1
    return total / count


def test_attention_is_averaged_over_pairs_of_tokens_that_count():
    ours, theirs = [draw(2, 4, 3, 3, seed=s) for s in (1, 2)], [draw(2, 4, 3, 3, seed=s) for s in (3, 4)]
    expected = sum(slow_attention(x, y, MASK) for x, y in zip(ours, theirs, strict=True))
    for x in (*ours, *theirs):
        x[0, :, 2], x[0, :, :, 2] = math.nan, math.nan  # padding may hold anything
    value = TinyBERTAttention()(side(*ours, mask=MASK), side(*theirs), NO_TARGET)
    assert value.item() == pytest.approx(expected, rel=1e-12)


def test_without_a_mask_scores_of_padding_are_zero():
    ours, theirs = draw(2, 4, 3, 3, seed=1), draw(2, 4, 3, 3, seed=2)
    expected = ((ours[..., :2] - theirs[..., :2]) ** 2).sum() / ours.numel()
    for x in (ours, theirs):
        x[..., 2] -= 10000
    assert TinyBERTAttention()(side(ours), side(theirs), NO_TARGET).item() == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize(("score", "counts"), [(-100.0, False), (-99.5, True), (-100.5, False)])
def test_scores_up_to_minus_100_are_those_of_padding(score, counts):
    ours, theirs = torch.full((1, 1, 1, 1), score), torch.zeros(1, 1, 1, 1)
    assert TinyBERTAttention()(side(ours), side(theirs), NO_TARGET).item() == (score**2 if counts else 0)


def test_scores_of_queries_and_keys():
    ours, theirs = [draw(2, 3, 8, seed=s) for s in range(4)], [draw(2, 3, 12, seed=s) for s in range(4, 8)]

    def scores(query, key):
        width = query.shape[2] // 4
        parts = [
            query[..., a * width : (a + 1) * width] @ key[..., a * width : (a + 1) * width].mT / math.sqrt(width)
            for a in range(4)
        ]
        return torch.stack(parts, 1)

    expected = sum(slow_attention(scores(*ours[i : i + 2]), scores(*theirs[i : i + 2]), MASK) for i in (0, 2))
    value = TinyBERTAttention(heads=4)(side(*ours, mask=MASK), side(*theirs), NO_TARGET)
    assert value.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("mask", [None, MASK])
def test_hidden_states_share_one_projection(mask):
    ours, theirs = [draw(2, 3, 4, seed=s) for s in (1, 2)], [draw(2, 3, 6, seed=s) for s in (3, 4)]
    loss = TinyBERTHidden().double()
    loss(side(*ours, mask=mask), side(*theirs), NO_TARGET)
    (linear,) = loss.double().projections
    expected = 0.0
    for x, y in zip(ours, theirs, strict=True):
        places = [(b, i) for b in range(2) for i in range(3) if mask is None or mask[b, i]]
        squares = [((linear.weight @ x[p] + linear.bias - y[p]) ** 2).sum().item() for p in places]
        expected += sum(squares) / len(places) / 6
    assert loss(side(*ours, mask=mask), side(*theirs), NO_TARGET).item() == pytest.approx(expected, rel=1e-12)


def test_projections_of_their_own_serve_layers_of_other_widths():
    ours, theirs = [draw(2, 3, 4), draw(2, 3, 5)], [draw(2, 3, 6, seed=1), draw(2, 3, 7, seed=2)]
    loss = TinyBERTHidden(shared=False)
    value = loss(side(*ours), side(*theirs), NO_TARGET)
    rows = [x @ linear.weight.T + linear.bias for x, linear in zip(ours, loss.projections, strict=True)]
    expected = sum((x - y).square().mean().item() for x, y in zip(rows, theirs, strict=True))
    assert value.item() == pytest.approx(expected, rel=1e-12)


def test_all_masked_is_zero_with_zero_gradient():
    mask = torch.zeros(2, 3)
    for loss, shape in ((TinyBERTAttention(), (2, 4, 3, 3)), (TinyBERTHidden(project=False), (2, 3, 4))):
        student = draw(*shape, seed=1).requires_grad_()
        value = loss(side(student, mask=mask), side(draw(*shape, seed=2)), NO_TARGET)
        value.backward()
        assert (value.item(), student.grad.abs().max().item()) == (0, 0)


def test_layers_that_cannot_be_compared_are_refused():
    with pytest.raises(InputError, match="of as many heads"):
        TinyBERTAttention()(side(draw(2, 4, 3, 3)), side(draw(2, 6, 3, 3)), NO_TARGET)
    with pytest.raises(InputError, match="10 wide, which 4 heads do not divide"):
        TinyBERTAttention(4)(side(draw(2, 3, 8), draw(2, 3, 8)), side(draw(2, 3, 10), draw(2, 3, 10)), NO_TARGET)
    with pytest.raises(InputError, match="queries and keys in turn"):
        TinyBERTAttention(4)(side(draw(2, 3, 8)), side(draw(2, 3, 8)), NO_TARGET)
    with pytest.raises(InputError, match="one length"):
        TinyBERTHidden()(side(draw(2, 3, 8)), side(draw(2, 4, 8)), NO_TARGET)
    with pytest.raises(InputError, match="one width"):
        TinyBERTHidden(project=False)(side(draw(2, 3, 8)), side(draw(2, 3, 4)), NO_TARGET)
    with pytest.raises(InputError, match="set shared to false"):
        TinyBERTHidden()(side(draw(2, 3, 8), draw(2, 3, 4)), side(draw(2, 3, 8), draw(2, 3, 8)), NO_TARGET)
    with pytest.raises(InputError, match="layers have 3 positions"):
        TinyBERTHidden()(side(draw(2, 3, 8), mask=torch.ones(2, 5)), side(draw(2, 3, 8)), NO_TARGET)
