"""SelfSupervision against plain loops."""

import dataclasses
import math

import pytest
import torch

from kdlab.errors import InputError
from kdlab.losses import SelfSupervision
from kdlab.outputs import Outputs
from tests.losses.slow import dot, draw, embedded, softmax

NO_TARGET = torch.zeros(1)
STUDENT = Outputs(torch.zeros(4, 2))


def teacher(batch=4, views=3, width=5):
    view = embedded(draw(batch * views, width, seed=1))
    return dataclasses.replace(embedded(draw(batch, width, seed=2)), views={"rotations": view})


def slow_head(head, row):
    for number, linear in enumerate((head[0], head[2])):
        row = [dot(w, row) + b for w, b in zip(linear.weight.tolist(), linear.bias.tolist(), strict=True)]
        row = [max(value, 0.0) for value in row] if number == 0 else row
    return row


def slow_cosines(rotated, upright):
    return [[dot(a, b) / math.sqrt(dot(a, a) * dot(b, b)) for b in upright] for a in rotated]


@pytest.mark.parametrize("views", [1, 3])
def test_value(views):
    seen, loss = teacher(views=views), SelfSupervision()
    got = loss(STUDENT, seen, NO_TARGET).item()
    rotated = [slow_head(loss.head, row) for row in seen.views["rotations"].embedding.tolist()]
    upright = [slow_head(loss.head, row) for row in seen.embedding.tolist()]
    found = [softmax(row)[i // views] for i, row in enumerate(slow_cosines(rotated, upright))]
    assert got == pytest.approx(-sum(map(math.log, found)) / len(found), rel=1e-9)


def test_only_the_head_learns_and_it_can():
    torch.manual_seed(0)
    upright = draw(6, 8)
    rotated = upright.repeat_interleave(3, 0) + 0.1 * draw(18, 8, seed=1)
    seen = dataclasses.replace(embedded(upright.requires_grad_()), views={"rotations": embedded(rotated)})
    loss = SelfSupervision()
    student = Outputs(torch.zeros(6, 2, requires_grad=True))
    loss(student, seen, NO_TARGET)
    optimizer = torch.optim.Adam(loss.parameters(), 0.05)
    values = []
    for _ in range(50):
        value = loss(student, seen, NO_TARGET)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert upright.grad is None
    assert student.logits.grad is None
    assert values[-1] < 0.8 * values[0]


def test_cosines_are_those_of_the_head_without_gradient():
    seen, loss = teacher(), SelfSupervision()
    loss(STUDENT, seen, NO_TARGET)
    cosines = loss.cosines(seen.map(lambda x: x.float()))
    assert not cosines.requires_grad
    assert cosines.dtype is torch.float32
    rotated = [slow_head(loss.head, row) for row in seen.views["rotations"].embedding.tolist()]
    upright = [slow_head(loss.head, row) for row in seen.embedding.tolist()]
    assert torch.allclose(cosines.double(), torch.tensor(slow_cosines(rotated, upright)).double(), atol=1e-5)


def test_missing_inputs_raise_input_error():
    seen = teacher()
    view = seen.views["rotations"]
    less = dataclasses.replace(seen, views={"rotations": view.map(lambda x: x[:11])})
    for given, words in (
        (dataclasses.replace(seen, views={}), "'rotations'"),
        (dataclasses.replace(seen, embedding=None), "teacher has no embedding"),
        (less, "11 images for 4"),
        (teacher(batch=3), "4 samples and the teacher 3"),
        (teacher(batch=0), "0 images for 0"),
    ):
        with pytest.raises(InputError, match=words):
            SelfSupervision()(STUDENT, given, NO_TARGET)
