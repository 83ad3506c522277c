"""SimilarityPreserving against plain loops."""

import math

import pytest
import torch

from kdlab.errors import InputError
from kdlab.losses import SimilarityPreserving
from tests.losses.slow import dot, draw, tapped

NO_TARGET = torch.zeros(1)


def rows(x):
    flat = [sample.flatten().tolist() for sample in x]
    gram = [[dot(a, b) for b in flat] for a in flat]
    return [[value / math.sqrt(dot(row, row)) for value in row] for row in gram]


def slow(student, teacher):
    ours, theirs, places = rows(student), rows(teacher), range(len(student))
    return sum((ours[i][j] - theirs[i][j]) ** 2 for i in places for j in places) / len(student) ** 2


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_value(batch):
    student, teacher = draw(batch, 2, 3, 3, seed=1), draw(batch, 4, 2, 2, seed=2)
    loss = SimilarityPreserving()(tapped(student), tapped(teacher), NO_TARGET)
    assert loss.item() == pytest.approx(slow(student, teacher), rel=1e-11, abs=1e-15)


def test_layers_of_any_dimension_are_summed():
    students, teachers = (draw(3, 7, seed=1), draw(3, 2, 5, seed=2)), (draw(3, 2, 2, 2, seed=3), draw(3, 4, seed=4))
    loss = SimilarityPreserving()(tapped(*students), tapped(*teachers), NO_TARGET)
    assert loss.item() == pytest.approx(sum(map(slow, students, teachers)), rel=1e-11)


@pytest.mark.parametrize(
    ("students", "teachers", "words"),
    [
        ([(2, 3)], [(2, 3), (2, 3)], "1 student layers .* 2 teacher layers"),
        ([(2, 3)], [(3, 3)], r"\(2, 3\).*\(3, 3\)"),
        ([(2,)], [(2, 3)], r"\(2,\)"),
    ],
)
def test_incompatible_layers_raise_input_error(students, teachers, words):
    with pytest.raises(InputError, match=words):
        SimilarityPreserving()(tapped(*map(torch.ones, students)), tapped(*map(torch.ones, teachers)), NO_TARGET)
