"""HiddenCosine, PKD and EmbedDistill against plain loops."""

import math

import pytest
import torch

from kdlab.errors import InputError
from kdlab.losses import PKD, EmbedDistill, HiddenCosine
from kdlab.outputs import Outputs
from tests.losses.slow import dot, draw, embedded

NO_TARGET = torch.zeros(1)
MASK = torch.tensor([[1, 1, 0], [1, 0, 0]])


def side(*layers, mask=None):
    return Outputs(torch.zeros(len(layers[0]), 2), layers, mask=mask)


def norm(row):
    return math.sqrt(dot(row, row))


def test_cosine_is_averaged_over_tokens_that_count():
    ours, theirs = [draw(2, 3, 4, seed=s) for s in (1, 2)], [draw(2, 3, 4, seed=s) for s in (3, 4)]
    expected = 0.0
    for x, y in zip(ours, theirs, strict=True):
        rows = [(x[place].tolist(), y[place].tolist()) for place in ((0, 0), (0, 1), (1, 0))]
        expected += sum(1 - dot(a, b) / norm(a) / norm(b) for a, b in rows) / 3
        x[0, 2] = y[1, 1] = math.nan  # padding may hold anything
    assert HiddenCosine()(side(*ours, mask=MASK), side(*theirs), NO_TARGET).item() == pytest.approx(expected, rel=1e-12)


def test_cosine_of_padding_alone_is_zero():
    student = draw(2, 3, 4, seed=1).requires_grad_()
    value = HiddenCosine()(side(student, mask=torch.zeros(2, 3)), side(draw(2, 3, 4)), NO_TARGET)
    value.backward()
    assert (value.item(), student.grad.abs().max().item()) == (0, 0)


def test_patience_compares_normalized_first_tokens():
    ours, theirs = [draw(2, 3, 4, seed=s) for s in (1, 2)], [draw(2, 3, 4, seed=s) for s in (3, 4)]
    total = 0.0
    for x, y in zip(ours, theirs, strict=True):
        for b in range(2):
            p, q = x[b, 0].tolist(), y[b, 0].tolist()
            total += sum((u / norm(p) - v / norm(q)) ** 2 for u, v in zip(p, q, strict=True))
    assert PKD()(side(*ours), side(*theirs), NO_TARGET).item() == pytest.approx(total / (2 * 2 * 4), rel=1e-12)
    first = [[x[:, 0] for x in layers] for layers in (ours, theirs)]
    assert PKD()(side(*first[0]), side(*first[1]), NO_TARGET).item() == pytest.approx(total / 16, rel=1e-12)


@pytest.mark.parametrize("distance", ["mse", "l2", "cosine"])
@pytest.mark.parametrize("project", [False, True])
def test_embeddings(distance, project):
    ours, theirs = draw(3, 4, seed=1), draw(3, 6 if project else 4, seed=2)
    loss = EmbedDistill(distance, project).double()
    loss(embedded(ours), embedded(theirs), NO_TARGET)
    rows = ours @ loss.double().projection.weight.T if project else ours
    values = []
    for a, b in zip(rows.tolist(), theirs.tolist(), strict=True):
        difference = [u - v for u, v in zip(a, b, strict=True)]
        square = dot(difference, difference)
        values.append({"mse": square / len(a), "l2": math.sqrt(square), "cosine": 1 - dot(a, b) / norm(a) / norm(b)})
    expected = sum(each[distance] for each in values) / 3
    assert loss(embedded(ours), embedded(theirs), NO_TARGET).item() == pytest.approx(expected, rel=1e-12)


def test_embeddings_of_other_widths_need_a_projection():
    with pytest.raises(InputError, match="4 wide and the teacher's 6: set project"):
        EmbedDistill()(embedded(draw(3, 4)), embedded(draw(3, 6)), NO_TARGET)


@pytest.mark.parametrize(("student", "teacher"), [((2, 3, 4), (2, 5, 4)), ((2, 3, 4), (2, 4)), ((2, 3, 4), (2, 3, 6))])
def test_sequences_of_other_lengths_or_widths_are_refused(student, teacher):
    with pytest.raises(InputError, match="This loss compares"):
        PKD()(side(torch.zeros(student)), side(torch.zeros(teacher)), NO_TARGET)
