"""IRG against plain loops."""

import pytest
import torch

from kdlab.errors import InputError
from kdlab.losses import IRG
from kdlab.outputs import Outputs
from tests.losses.slow import draw

NO_TARGET = torch.zeros(1)


def distances(x):
    rows = x.flatten(1).tolist()
    d = [[sum((a - b) ** 2 for a, b in zip(x, y, strict=True)) for y in rows] for x in rows]
    most = max(max(row) for row in d)
    return [value / most for row in d for value in row]


def mse(a, b):
    return sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) / len(a)


def flat(x):
    return x.flatten().tolist()


def slow(student, teacher, graph, transformation):
    """Both sides are (embedding, layers)."""
    (x, ours), (y, theirs) = student, teacher
    value = mse(distances(x), distances(y)) + (mse(flat(x), flat(y)) if x.shape == y.shape else 0)
    changes = 0
    for i in range(0, len(ours), 2):
        changed = [mse(distances(f[i]), distances(f[i + 1])) for f in (ours, theirs)]
        changes += (changed[0] - changed[1]) ** 2
        if all(f[i].shape == f[i + 1].shape for f in (ours, theirs)):
            changed = [mse(flat(f[i]), flat(f[i + 1])) for f in (ours, theirs)]
            changes += (changed[0] - changed[1]) ** 2
    return graph * value + transformation * changes


def outputs(side):
    return Outputs(side[0].new_zeros(len(side[0]), 2), tuple(side[1]), side[0])


def sides(width=3, second=(4, 2, 2)):
    student = draw(5, 3, seed=1), [draw(5, 2, 4, 4, seed=2), draw(5, *second, seed=3), draw(5, 6, seed=4), draw(5, 6)]
    teacher = draw(5, width, seed=5), [draw(5, *shape, seed=6) for shape in ((3, 4, 4), (5, 2, 2), (7,), (7,))]
    return student, teacher


@pytest.mark.parametrize("width", [3, 8])
def test_value(width):
    student, teacher = sides(width)
    got = IRG(0.7, 30.0)(outputs(student), outputs(teacher), NO_TARGET).item()
    assert got == pytest.approx(slow(student, teacher, 0.7, 30.0), rel=1e-9)


def test_layers_of_one_shape_are_compared_themselves():
    student, teacher = sides()
    one = student[0], student[1][2:]
    other = teacher[0], teacher[1][2:]
    parts = [
        IRG(0.0, 1.0)(outputs((a[0], a[1])), outputs((b[0], b[1])), NO_TARGET).item()
        for a, b in ((one, other), ((one[0], [one[1][0], one[1][1][:, :4]]), other))
    ]
    assert parts[0] == pytest.approx(slow(one, other, 0.0, 1.0), rel=1e-9)
    assert parts[0] != parts[1]


def test_layers_are_compared_directly_only_if_shapes_agree():
    student, teacher = (
        (side[0], [draw(5, *s, seed=i) for i, s in enumerate(shapes, start=n)])
        for side, shapes, n in zip(sides(), (((6,), (6,)), ((7,), (1,))), (1, 3), strict=True)
    )
    for one, other in ((student, teacher), (teacher, student)):
        value = IRG(0.0, 30.0)(outputs(one), outputs(other), NO_TARGET).item()
        assert value == pytest.approx(slow(one, other, 0.0, 30.0), rel=1e-9)


def test_the_scale_of_distances_does_not_matter():
    student, teacher = sides(width=8)
    values = [IRG(1.0, 0.0)(outputs((c * student[0], student[1])), outputs(teacher), NO_TARGET) for c in (1.0, 1e-3)]
    assert values[0].item() == pytest.approx(values[1].item(), rel=1e-4)


def test_float32_keeps_distances_far_from_the_origin():
    student, teacher = sides()
    student = student[0] + 100, [x + 100 for x in student[1]]
    value = IRG()(outputs(student), outputs(teacher), NO_TARGET).item()
    in_float32 = IRG()(*(outputs(side).map(lambda x: x.float()) for side in (student, teacher)), NO_TARGET).item()
    assert in_float32 == pytest.approx(value, rel=1e-4)


def test_incompatible_inputs_raise_input_error():
    student, teacher = map(outputs, sides())
    odd = [Outputs(x.logits, x.layers[:3], x.embedding) for x in (student, teacher)]
    with pytest.raises(InputError, match="an even number of them, not 3"):
        IRG()(*odd, NO_TARGET)
    with pytest.raises(InputError, match="no embedding"):
        IRG()(Outputs(student.logits, student.layers), teacher, NO_TARGET)
    fewer = [Outputs(x.logits[:4], x.layers, x.embedding[:4]) for x in (student, teacher)]
    with pytest.raises(InputError, match="embeddings of 4 samples and layers of 5"):
        IRG()(*fewer, NO_TARGET)
