"""Soft labels against plain loops, and what they are with labels in the teacher's place."""

import math

import pytest
import torch

from kdlab.errors import InputError
from kdlab.losses import Labels, SoftLabels
from kdlab.outputs import Outputs
from tests.losses.slow import draw, softmax


def slow(student, teacher, temperature):
    rows = [
        -sum(p * math.log(q) for p, q in zip(softmax(t, temperature), softmax(s), strict=True))
        for s, t in zip(student.tolist(), teacher.tolist(), strict=True)
    ]
    return rows, sum(rows) / len(rows)


def memory(labels, classes):
    """Labels as logits of a memory: 0 for the label and -10^4 for all others."""
    return torch.full((len(labels), classes), -1e4).scatter(1, labels[:, None], 0.0)


@pytest.mark.parametrize("temperature", [1.0, 0.5, 3.0])
def test_value(temperature):
    student, teacher = draw(4, 5, seed=1, scale=2), draw(4, 5, seed=2, scale=2)
    loss = SoftLabels(temperature)
    rows, mean = slow(student, teacher, temperature)
    assert loss(Outputs(student), Outputs(teacher), torch.zeros(1)).item() == pytest.approx(mean, rel=1e-12)
    each = loss.per_sample(Outputs(student), Outputs(teacher), torch.zeros(1))
    assert each.tolist() == pytest.approx(rows, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_a_memory_of_labels_gives_the_cross_entropy_with_labels(dtype):
    labels = torch.tensor([0, 4, 2, 1])
    student = draw(4, 5, seed=1, scale=8).to(dtype).requires_grad_()
    other = student.detach().clone().requires_grad_()
    value = SoftLabels()(Outputs(student), Outputs(memory(labels, 5).to(dtype)), torch.zeros(1))
    expected = Labels()(Outputs(other), Outputs(other), labels)
    value.backward()
    expected.backward()
    assert value.item() == pytest.approx(expected.item(), rel=1e-12 if dtype is torch.float64 else 1e-6)
    assert torch.allclose(student.grad, other.grad, atol=1e-7)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.8])
def test_labels_and_predictions_mix_as_targets(alpha):
    student, teacher, labels = draw(3, 4, seed=1, scale=2), draw(3, 4, seed=2, scale=2), [3, 0, 2]
    sides = Outputs(student), Outputs(teacher), torch.tensor(labels)
    value = (1 - alpha) * Labels()(*sides) + alpha * SoftLabels()(*sides)
    total = 0.0
    for s, t, y in zip(student.tolist(), teacher.tolist(), labels, strict=True):
        mixed = [alpha * p + (1 - alpha) * (k == y) for k, p in enumerate(softmax(t))]
        total -= sum(p * math.log(q) for p, q in zip(mixed, softmax(s), strict=True))
    assert value.item() == pytest.approx(total / 3, rel=1e-12)


def test_token_logits_raise_input_error():
    tokens = Outputs(draw(2, 3, 4))
    with pytest.raises(InputError, match=r"needs logits \(B, K\)"):
        SoftLabels()(tokens, tokens, torch.zeros(1))
