"""ULD against plain loops: other vocabularies, lengths, prompts and padding."""

import pytest
import torch

from kdlab.errors import InputError
from kdlab.losses import ULD
from kdlab.outputs import Outputs
from tests.losses.slow import draw, softmax

NO_TARGET = torch.zeros(1)


def slow(student, teacher, places):
    """Mean over samples of the mean over paired positions (student, teacher) of the sorted L1 distance."""
    values = []
    for b, pairs in enumerate(places):
        rows = []
        for i, j in pairs:
            q, p = (sorted(softmax(x), reverse=True) for x in (student[b, i].tolist(), teacher[b, j].tolist()))
            width = max(len(p), len(q))
            p, q = (x + [0.0] * (width - len(x)) for x in (p, q))
            rows.append(sum(abs(a - b) for a, b in zip(p, q, strict=True)))
        values += [sum(rows) / len(rows)] if rows else []
    return sum(values) / len(values)


def test_a_known_number():
    student, teacher = torch.tensor([[1.5, 2.0, 0.0, -0.5]]), torch.tensor([[3.0, 1.0, 0.5, -1.0]])
    assert ULD()(Outputs(student), Outputs(teacher), NO_TARGET).item() == pytest.approx(0.521948, abs=6e-7)


def test_each_side_has_its_own_temperature():
    student, teacher = draw(1, 2, 6, seed=1, scale=2), draw(1, 2, 9, seed=2, scale=2)
    expected = slow(student / 2.5, teacher / 1.5, [[(0, 0), (1, 1)]])
    value = ULD(2.5, 1.5)(Outputs(student), Outputs(teacher), torch.zeros(1, 2, dtype=torch.int64))
    assert value.item() == pytest.approx(expected, rel=1e-12)


def test_answers_are_paired_up_to_the_shorter_one():
    student, teacher = draw(3, 4, 6, seed=1, scale=2), draw(3, 5, 9, seed=2, scale=2)
    ours = torch.tensor([[-100, 1, 2, -100], [3, 3, 3, 3], [-100, -100, -100, -100]])
    theirs = torch.tensor([[-100, -100, 5, 6, 7], [1, -100, -100, 2, 3], [1, 1, 1, 1, 1]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 0, 1, 1], [1, 1, 1, 1]])
    sides = Outputs(student, mask=mask), Outputs(teacher, target=theirs)
    expected = slow(student, teacher, [[(1, 2), (2, 3)], [(0, 0), (2, 3), (3, 4)], []])
    assert ULD()(*sides, ours).item() == pytest.approx(expected, rel=1e-12)


def test_without_an_answer_it_is_zero():
    student = draw(2, 3, 4, seed=1).requires_grad_()
    value = ULD()(Outputs(student), Outputs(draw(2, 3, 5)), torch.full((2, 3), -100))
    value.backward()
    assert (value.item(), student.grad.abs().max().item()) == (0, 0)


def test_other_samples_are_refused():
    with pytest.raises(InputError, match="same samples"):
        ULD()(Outputs(draw(2, 3, 4)), Outputs(draw(1, 3, 4)), NO_TARGET)
