"""SemCKD against plain loops."""

import math

import pytest
import torch
from torch import nn

from kdlab.errors import InputError
from kdlab.losses import SemCKD
from kdlab.losses.context import Context
from kdlab.outputs import Outputs
from tests.losses.slow import dot, draw, softmax, tapped

NO_TARGET = torch.zeros(1)


def ready(batch: int | None = 8, **given: int) -> SemCKD:
    torch.manual_seed(0)
    loss = SemCKD(**given)
    loss.setup(Context(nn.Identity(), (nn.Identity(),), batch_size=batch))
    return loss


def sides(batch: int = 8):
    ours = (draw(batch, 3, 4, 4, seed=1), draw(batch, 2, 2, 2, seed=2))
    theirs = (draw(batch, 4, 4, 4, seed=3), draw(batch, 3, 2, 2, seed=4), draw(batch, 2, 1, 1, seed=5))
    return tapped(*ours), tapped(*theirs)


def slow_embedded(layer, perceptron, full):
    """Rows of scalar products, filled up with zeros, through a perceptron, of norm 1."""
    rows, out = layer.flatten(1).tolist(), []
    for row in rows:
        x = [dot(row, other) for other in rows] + [0.0] * (full - len(rows))
        for linear, last in ((perceptron[0], False), (perceptron[2], True)):
            x = [dot(w, x) + b for w, b in zip(linear.weight.tolist(), linear.bias.tolist(), strict=True)]
            x = x if last else [max(value, 0.0) for value in x]
        out.append([value / math.sqrt(dot(x, x)) for value in x])
    return out


@pytest.mark.parametrize("batch", [8, 5])
def test_value(batch):
    student, teacher = sides(batch)
    loss = ready().eval()
    value = loss(student, teacher, NO_TARGET)
    queries = [slow_embedded(x, p, 8) for x, p in zip(student.layers, loss.queries, strict=True)]
    keys = [slow_embedded(x, p, 8) for x, p in zip(teacher.layers, loss.keys, strict=True)]
    total = 0.0
    for i, ours in enumerate(student.layers):
        for b in range(batch):
            attention = softmax([dot(queries[i][b], key[b]) for key in keys])
            for j, theirs in enumerate(teacher.layers):
                size = min(ours.shape[2], theirs.shape[2])
                x, y = (nn.functional.adaptive_avg_pool2d(each, size) for each in (ours, theirs))
                distance = (loss.projections[i][j](x)[b] - y[b]).square().mean().item()
                total += attention[j] * distance / (batch * 2)
    assert value.item() == pytest.approx(total, rel=1e-10)


def test_sizes():
    loss = ready(8, factor=2)
    loss(*sides(), NO_TARGET)
    assert [tuple(linear.weight.shape) for linear in (loss.keys[0][0], loss.keys[0][2])] == [(8, 8), (4, 8)]
    shapes = [tuple(loss.projections[1][0][place].weight.shape) for place in (0, 3, 6)]
    assert shapes == [(8, 2, 1, 1), (8, 8, 3, 3), (4, 8, 1, 1)]
    assert (len(loss.queries), len(loss.keys)) == (2, 3)
    assert [len(row) for row in loss.projections] == [3, 3]
    tiny = ready(2, factor=4)
    assert tiny(*sides(2), NO_TARGET).isfinite()


def test_gradient_reaches_attention_and_not_the_teacher():
    student, teacher = (side.map(torch.Tensor.requires_grad_) for side in sides())
    loss = ready()
    loss(student, teacher, NO_TARGET).backward()
    assert all(parameter.grad is not None for parameter in loss.parameters())
    assert loss.queries[0][0].weight.grad.any()
    assert loss.keys[2][0].weight.grad.any()
    assert all(layer.grad is None for layer in teacher.layers)


def test_a_run_goes_on_only_with_its_batch_size():
    loss = ready(8)
    loss(*sides(), NO_TARGET)
    again = ready(6)  # another batch size, but the state says 8
    again.load_state_dict(loss.state_dict())
    assert torch.equal(again(*sides(), NO_TARGET), loss(*sides(), NO_TARGET))
    with pytest.raises(InputError, match="set up for batches of 8 samples, but now meets 9: keep the batch size"):
        loss(*sides(9), NO_TARGET)
    with pytest.raises(InputError, match="set up for batches of 8"):
        ready(8)(*sides(9), NO_TARGET)


def test_invalid_inputs_raise_input_error():
    student, teacher = sides()
    with pytest.raises(InputError, match="needs the size of a full batch"):
        ready(None)(student, teacher, NO_TARGET)
    with pytest.raises(InputError, match="none of the teacher's is tapped: set teacher_layers"):
        ready()(student, Outputs(student.logits), NO_TARGET)
    with pytest.raises(InputError, match=r"student layer 'flat' gives \(8, 3\)"):
        ready()(tapped(draw(8, 3), names=("flat",)), teacher, NO_TARGET)
    with pytest.raises(InputError, match="8 samples and the teacher's 5"):
        ready()(student, sides(5)[1], NO_TARGET)
    loss = ready()
    loss(student, teacher, NO_TARGET)
    with pytest.raises(InputError, match="sizes"):
        loss(teacher, student, NO_TARGET)
    with pytest.raises(InputError, match="factor must be a whole number"):
        SemCKD(factor=2.5)
