"""RKDDistance and RKDAngle against plain loops."""

import math

import pytest
import torch

from kdlab.errors import InputError
from kdlab.losses import RKDAngle, RKDDistance
from kdlab.outputs import Outputs
from tests.losses.slow import dot, draw, embedded, smooth_l1, tapped

NO_TARGET = torch.zeros(1)
BOTH = pytest.mark.parametrize("loss", [RKDDistance(), RKDAngle()])


def difference(a, b):
    return [y - x for x, y in zip(a, b, strict=True)]


def relative_distances(x):
    rows, n = x.tolist(), len(x)
    d = {(i, j): math.sqrt(max(dot(*[difference(rows[i], rows[j])] * 2), 1e-12)) for i in range(n) for j in range(n)}
    mean = sum(value for (i, j), value in d.items() if i != j) / (n * (n - 1))
    return {(i, j): 0.0 if i == j else value / mean for (i, j), value in d.items()}


def slow_distance(student, teacher):
    ours, theirs = relative_distances(student), relative_distances(teacher)
    return sum(smooth_l1(ours[pair] - theirs[pair]) for pair in ours) / len(ours)


def cosine(rows, i, j, k):
    a, b = difference(rows[i], rows[j]), difference(rows[i], rows[k])
    return dot(a, b) / (max(math.sqrt(dot(a, a)), 1e-12) * max(math.sqrt(dot(b, b)), 1e-12))


def slow_angle(student, teacher):
    n, ours, theirs = len(student), student.tolist(), teacher.tolist()
    triples = [(i, j, k) for i in range(n) for j in range(n) for k in range(n)]
    return sum(smooth_l1(cosine(ours, *each) - cosine(theirs, *each)) for each in triples) / n**3


@pytest.mark.parametrize("scale", [1.0, 50.0])
@pytest.mark.parametrize("copies", [False, True])
def test_value(scale, copies):
    student, teacher = draw(6, 4, seed=1, scale=scale), draw(6, 9, seed=2, scale=scale)
    if copies:
        student[1], teacher[3] = student[0], teacher[2]
    sides = embedded(student), embedded(teacher)
    assert RKDDistance()(*sides, NO_TARGET).item() == pytest.approx(slow_distance(student, teacher), rel=1e-8)
    assert RKDAngle()(*sides, NO_TARGET).item() == pytest.approx(slow_angle(student, teacher), rel=1e-9)


def test_large_differences_are_linear():
    student, teacher = (
        torch.tensor([[0.0], [1], [1.01], [0.99]]).double(),
        torch.tensor([[0.0], [1], [9], [3]]).double(),
    )
    got = RKDDistance()(embedded(student), embedded(teacher), NO_TARGET).item()
    ours, theirs = relative_distances(student), relative_distances(teacher)
    assert max(abs(ours[pair] - theirs[pair]) for pair in ours) > 1
    assert got == pytest.approx(slow_distance(student, teacher), rel=1e-12)


def test_float32_keeps_distances_far_from_the_origin():
    student, teacher = draw(6, 4, seed=1) + 100, draw(6, 9, seed=2) + 100
    got = RKDDistance()(embedded(student.float()), embedded(teacher.float()), NO_TARGET).item()
    assert got == pytest.approx(slow_distance(student, teacher), rel=1e-4)


def test_the_gradient_at_copies_is_that_of_the_released_code():
    student = draw(5, 4, seed=1)
    student[1] = student[0]
    student.requires_grad_()
    RKDAngle()(embedded(student), embedded(draw(5, 4, seed=2)), NO_TARGET).backward()
    assert student.grad[:2].norm() > 1e6
    assert student.grad.isfinite().all()


@BOTH
def test_one_tapped_layer_goes_before_the_embedding(loss):
    student, teacher = draw(4, 2, 3, 3, seed=1), draw(4, 6, seed=2)
    other = Outputs(draw(4, 2), (student,), embedding=draw(4, 5, seed=3))
    expected = loss(embedded(student.flatten(1)), embedded(teacher), NO_TARGET)
    assert loss(other, embedded(teacher), NO_TARGET) == expected
    assert expected > 0


@BOTH
def test_incompatible_inputs_raise_input_error(loss):
    one = embedded(draw(4, 3))
    for student, teacher, words in (
        (tapped(draw(4, 3), draw(4, 3)), one, "2 student layers"),
        (one, tapped(draw(4, 3), draw(4, 3)), "2 teacher layers"),
        (Outputs(draw(4, 3)), one, "student has no embedding"),
        (one, Outputs(draw(4, 3)), "teacher has no embedding"),
        (one, embedded(draw(3, 3)), "4 samples and the teacher's 3"),
        (one, tapped(draw(4)), r"\(B, D\)"),
        (embedded(draw(0, 3)), embedded(draw(0, 3)), "batch is empty"),
    ):
        with pytest.raises(InputError, match=words):
            loss(student, teacher, NO_TARGET)


@BOTH
def test_one_sample_has_no_pair(loss):
    student = draw(1, 3).requires_grad_()
    value = loss(embedded(student), embedded(draw(1, 3)), NO_TARGET)
    value.backward()
    assert value.item() == 0
    assert not student.grad.any()


def test_the_one_distance_of_two_samples_is_its_own_mean():
    value = RKDDistance()(embedded(draw(2, 3, seed=1)), embedded(draw(2, 5, seed=2)), NO_TARGET)
    assert value.item() == pytest.approx(0, abs=1e-15)


def test_a_batch_of_copies_is_finite():
    student = torch.ones(4, 3, requires_grad=True)
    loss = RKDDistance()(embedded(student), embedded(draw(4, 3).float()), NO_TARGET)
    loss.backward()
    assert loss.isfinite()
    assert student.grad.isfinite().all()
