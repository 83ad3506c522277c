"""ReviewKD against a slow reference."""

import pytest
import torch

from kdlab.errors import InputError
from kdlab.losses import ReviewKD
from kdlab.losses.feature.review_kd import hierarchical_distance
from kdlab.outputs import Outputs
from tests.losses.slow import draw, tapped

NO_TARGET = torch.zeros(1)


def pooled(maps, size):
    """Means of the cells of PyTorch's adaptive pooling."""
    height, width = maps.shape[2:]
    cells = [
        maps[:, :, i * height // size : -(-(i + 1) * height // size), j * width // size : -(-(j + 1) * width // size)]
        for i in range(size)
        for j in range(size)
    ]
    return torch.stack([cell.mean((2, 3)) for cell in cells], -1)


def mean_square(a, b):
    pairs = list(zip(a.flatten().tolist(), b.flatten().tolist(), strict=True))
    return sum((x - y) ** 2 for x, y in pairs) / len(pairs)


def slow_distance(a, b):
    value, weight, total = mean_square(a, b), 1.0, 1.0
    for size in (4, 2, 1):
        if size < a.shape[2]:
            weight /= 2
            value += weight * mean_square(pooled(a, size), pooled(b, size))
            total += weight
    return value / total


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (3, 3), (4, 4), (7, 7), (8, 8), (2, 5), (5, 2)])
def test_hierarchical_distance(size):
    a, b = draw(2, 3, *size, seed=1), draw(2, 3, *size, seed=2)
    assert hierarchical_distance(a, b).item() == pytest.approx(slow_distance(a, b), rel=1e-11)


def normal(x):
    return (x - x.mean((0, 2, 3), keepdim=True)) / (x.var((0, 2, 3), correction=0, keepdim=True) + 1e-5).sqrt()


def entered(x, fusion):
    return normal(torch.einsum("oi,bihw->bohw", fusion.enter.conv.weight[:, :, 0, 0], x))


def left(x, fusion):
    padded, (height, width) = torch.nn.functional.pad(x, (1, 1, 1, 1)), x.shape[2:]
    weight = fusion.leave.conv.weight
    cells = [(i, j, padded[:, :, i : i + height, j : j + width]) for i in range(3) for j in range(3)]
    return normal(sum(torch.einsum("oc,bchw->bohw", weight[:, :, i, j], cell) for i, j, cell in cells))


def doubled(x):
    return x.repeat_interleave(2, 2).repeat_interleave(2, 3)


def test_value_with_embeddings_and_a_teacher_of_another_size():
    student = Outputs(torch.zeros(3, 2), (draw(3, 4, 4, 4, seed=1), draw(3, 5, 2, 2, seed=2)), draw(3, 6, seed=3))
    teacher = Outputs(torch.zeros(3, 2), (draw(3, 7, 8, 8, seed=4), draw(3, 8, 2, 2, seed=5)), draw(3, 9, seed=6))
    loss = ReviewKD()
    value = loss(student, teacher, NO_TARGET)
    value.backward()
    shallow, deep, last = loss.fusions
    middle = entered(student.embedding[:, :, None, None], last)
    expected = slow_distance(left(middle, last), teacher.embedding[:, :, None, None])
    for fusion, ours, theirs in (
        (deep, student.layers[1], teacher.layers[1]),
        (shallow, student.layers[0], teacher.layers[0]),
    ):
        x, deeper = entered(ours, fusion), doubled(middle)
        weight, bias = fusion.attention.weight[:, :, 0, 0], fusion.attention.bias
        scores = torch.einsum("oi,bihw->bohw", weight, torch.cat([x, deeper], 1)) + bias[:, None, None]
        first, second = (1 / (1 + torch.exp(-scores))).split(1, 1)
        middle = first * x + second * deeper
        middle = middle if middle.shape[2:] == theirs.shape[2:] else doubled(middle)
        expected += slow_distance(left(middle, fusion), theirs)
    assert value.item() == pytest.approx(expected, rel=1e-9)
    assert all(parameter.grad is not None for parameter in loss.parameters())


@pytest.mark.parametrize(("middle", "expected"), [(512, 6), (2, 2)])
def test_middle_channels(middle, expected):
    loss = ReviewKD(middle, embedding=False)
    loss(tapped(draw(2, 3, 4, 4), draw(2, 6, 2, 2)), tapped(draw(2, 5, 4, 4), draw(2, 5, 2, 2)), NO_TARGET)
    assert [fusion.enter.conv.weight.shape[0] for fusion in loss.fusions] == [expected] * 2


def test_a_teacher_that_is_only_wider():
    student, teacher, loss = draw(3, 4, 4, 4, seed=1), draw(3, 5, 4, 8, seed=2), ReviewKD(embedding=False)
    value = loss(tapped(student), tapped(teacher), NO_TARGET).item()
    wide = entered(student, loss.fusions[0]).repeat_interleave(2, 3)
    assert value == pytest.approx(slow_distance(left(wide, loss.fusions[0]), teacher), rel=1e-9)


def test_first_weights_are_those_of_the_released_code():
    loss = ReviewKD(embedding=False)
    loss(tapped(torch.rand(2, 40, 2, 2)), tapped(torch.rand(2, 30, 2, 2)), NO_TARGET)
    for part, inputs in ((loss.fusions[0].enter, 40), (loss.fusions[0].leave, 40 * 9)):
        assert part.conv.weight.abs().max().item() == pytest.approx((3 / inputs) ** 0.5, rel=0.01)


def test_needs_follow_the_option():
    assert ReviewKD().needs == ("layers", "embedding")
    assert ReviewKD(embedding=False).needs == ("layers",)


def test_incompatible_inputs_raise_input_error():
    maps, vector = (torch.rand(2, 3, 4, 4),), torch.rand(2, 6)
    whole = Outputs(torch.zeros(2, 2), maps, vector)
    with pytest.raises(InputError, match=r"teacher has no embedding.*embedding=False"):
        ReviewKD()(whole, Outputs(torch.zeros(2, 2), maps), NO_TARGET)
    with pytest.raises(InputError, match="of one batch"):
        ReviewKD()(whole, Outputs(torch.zeros(2, 2), maps, torch.rand(1, 6)), NO_TARGET)
    shorter = Outputs(torch.zeros(2, 2), maps, torch.rand(1, 6))
    with pytest.raises(InputError, match="of one batch"):
        ReviewKD()(shorter, whole, NO_TARGET)
    for layers in (maps, 2 * maps):
        fewer = Outputs(torch.zeros(2, 2), layers, torch.rand(1, 6))
        with pytest.raises(InputError, match="of one batch"):
            ReviewKD()(fewer, fewer, NO_TARGET)
    with pytest.raises(InputError, match="middle"):
        ReviewKD(0)
    one = Outputs(torch.zeros(1, 2), (maps[0][:1],), vector[:1])
    with pytest.raises(InputError, match="more than one value per channel"):
        ReviewKD()(one, one, NO_TARGET)
