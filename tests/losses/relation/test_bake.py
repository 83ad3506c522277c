"""BAKE against plain loops that spread the answers step by step."""

import math

import pytest
import torch

from kdlab.errors import InputError
from kdlab.losses import BAKE, SoftTargets
from kdlab.outputs import Outputs
from tests.losses.slow import dot, draw, kl, softmax

NO_TARGET = torch.zeros(1)


def side(seed, batch=6, classes=5, width=4):
    return Outputs(draw(batch, classes, seed=seed, scale=2), embedding=draw(batch, width, seed=seed + 1))


def slow_shared(logits, embedding, temperature, omega, steps=2000):
    """Q by repeating Q <- omega A Q + (1 - omega) P, which has no inverse in it."""
    x, own = embedding.tolist(), [softmax(row, temperature) for row in logits.tolist()]
    count, classes = len(own), range(len(own[0]))
    cosines = [[dot(a, b) / math.sqrt(dot(a, a) * dot(b, b)) for b in x] for a in x]
    alike = []
    for b, row in enumerate(cosines):
        powers = [0.0 if j == b else math.exp(value) for j, value in enumerate(row)]
        alike.append([power / sum(powers) for power in powers])
    found = own
    for _ in range(steps):
        new = [
            [omega * sum(alike[b][j] * found[j][k] for j in range(count)) + (1 - omega) * own[b][k] for k in classes]
            for b in range(count)
        ]
        moved = max(abs(new[b][k] - found[b][k]) for b in range(count) for k in classes)
        found = new
        if moved < 1e-16:
            break
    return found


def slow(student, teacher, temperature, omega):
    targets = slow_shared(teacher.logits, teacher.embedding, temperature, omega)
    answers = [softmax(row, temperature) for row in student.logits.tolist()]
    return temperature**2 * sum(map(kl, targets, answers)) / len(targets)


@pytest.mark.parametrize(("temperature", "omega"), [(4.0, 0.5), (1.0, 0.9), (2.5, 0.0), (0.5, 0.3)])
@pytest.mark.parametrize("batch", [2, 6])
def test_value(temperature, omega, batch):
    student, teacher = side(1, batch), side(7, batch)
    expected = slow(student, teacher, temperature, omega)
    assert BAKE(temperature, omega)(student, teacher, NO_TARGET).item() == pytest.approx(expected, rel=1e-10)


def test_the_defaults_are_the_recipe():
    assert (BAKE().temperature, BAKE().omega) == (4.0, 0.5)


def test_targets_are_distributions():
    one = side(3)
    targets = BAKE(1.0, 0.9).shared(one.logits, one.embedding)
    assert targets.sum(1).tolist() == pytest.approx([1.0] * 6, rel=1e-12)
    assert targets.min() >= 0


def test_without_sharing_it_is_soft_targets():
    student, teacher = side(1), side(7)
    expected = SoftTargets(3.0)(student, teacher, NO_TARGET).item()
    assert BAKE(3.0, 0.0)(student, teacher, NO_TARGET).item() == pytest.approx(expected, rel=1e-12)
    alone = [side(seed, batch=1) for seed in (1, 7)]
    expected = SoftTargets(3.0)(*alone, NO_TARGET).item()
    assert BAKE(3.0, 0.7)(*alone, NO_TARGET).item() == pytest.approx(expected, rel=1e-12)


def test_targets_are_detached_in_self_distillation():
    logits, embedding = draw(5, 4, seed=1).requires_grad_(), draw(5, 3, seed=2).requires_grad_()
    network = Outputs(logits, embedding=embedding)
    BAKE(2.0, 0.5)(network, network, NO_TARGET).backward()
    assert embedding.grad is None
    targets = slow_shared(logits.detach(), embedding.detach(), 2.0, 0.5)
    answers = [softmax(row, 2.0) for row in logits.tolist()]
    expected = [
        2 * (a - q) / 5 for row, goal in zip(answers, targets, strict=True) for a, q in zip(row, goal, strict=True)
    ]
    assert logits.grad.flatten().tolist() == pytest.approx(expected, rel=1e-9, abs=1e-13)


def test_only_teacher_embedding_or_its_tapped_layer_is_read():
    student, teacher = side(1), side(7)
    expected = BAKE()(student, teacher, NO_TARGET)
    assert BAKE()(Outputs(student.logits), teacher, NO_TARGET) == expected
    tapped = Outputs(teacher.logits, (teacher.embedding.view(6, 2, 2, 1),), draw(6, 9))
    assert BAKE()(student, tapped, NO_TARGET) == expected


def test_certain_answers_and_copies_are_finite():
    logits = torch.tensor([[2000.0, 0.0, -2000.0], [0.0, 2000.0, 0.0], [0.0, 0.0, 2000.0]], requires_grad=True)
    embedding = torch.tensor([[0.0, 0.0], [1.0, 1.0], [1.0, 1.0]])
    loss = BAKE(1.0, 0.9)(Outputs(logits), Outputs(logits, embedding=embedding), NO_TARGET)
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()


def test_negative_rounding_counts_as_zero(monkeypatch):
    solve, student, teacher = torch.linalg.solve, side(1), side(7)
    monkeypatch.setattr(torch.linalg, "solve", lambda a, b: solve(a, b).index_fill(1, torch.tensor([0]), -1e-18))
    assert BAKE()(student, teacher, NO_TARGET).isfinite()


def test_invalid_inputs_raise_input_error():
    with pytest.raises(InputError, match="omega must be below 1"):
        BAKE(omega=1.0)
    student, teacher = side(1), side(7)
    for wrong in (None, draw(6), draw(5, 4)):
        with pytest.raises(InputError, match="BAKE compares the teacher's embeddings"):
            BAKE()(student, Outputs(teacher.logits, embedding=wrong), NO_TARGET)
