"""RLD against plain loops."""

import pytest
import torch

from kdlab.losses import RLD
from kdlab.outputs import Outputs
from tests.losses.slow import draw, kl, softmax

LABELS = torch.tensor([0, 4, 2, 1, 3, 0])


def slow(student, teacher, labels, alpha, beta, temperature, confidence_temperature):
    total = 0.0
    for s, t, y in zip(student.tolist(), teacher.tolist(), labels.tolist(), strict=True):
        p, q = max(softmax(t, confidence_temperature)), softmax(s, confidence_temperature)[y]
        total += alpha * confidence_temperature**2 * kl([p, 1 - p], [q, 1 - q])
        below = [k for k in range(len(t)) if t[k] < t[y]]
        if below:
            p, q = (softmax([x[k] for k in below], temperature) for x in (t, s))
            total += beta * temperature**2 * kl(p, q)
    return total / len(labels)


@pytest.mark.parametrize("arguments", [(1, 8, 4, 1), (1, 0, 4, 4), (0, 1, 0.5, 1), (0.5, 2, 2, 0.7)])
def test_value(arguments):
    student, teacher = draw(6, 5, seed=1, scale=2), draw(6, 5, seed=2, scale=2)
    loss = RLD(*arguments)(Outputs(student), Outputs(teacher), LABELS)
    assert loss.item() == pytest.approx(slow(student, teacher, LABELS, *arguments), rel=1e-11)


@pytest.mark.parametrize("teacher", [[-1.0, 0.0, 2.0], [0.0, 0.0, 0.0]])
def test_nothing_below_the_label_gives_0_and_no_gradient(teacher):
    student = torch.tensor([[1.0, -2.0, 0.5]], requires_grad=True)
    loss = RLD(alpha=0.0, beta=1.0)(Outputs(student), Outputs(torch.tensor([teacher])), torch.tensor([0]))
    loss.backward()
    assert loss.item() == 0.0
    assert not student.grad.any()


def test_masked_classes_are_excluded_at_any_logit_scale():
    student, teacher = torch.tensor([[-3e4, 2.0 - 3e4, 0.0]]).double(), torch.tensor([[1.0, 0.0, 2.0]]).double()
    value = RLD(0.0, 1.0, 1.0)(Outputs(student), Outputs(teacher), torch.tensor([2]))
    p, q = softmax([1.0, 0.0]), softmax([0.0, 2.0])
    assert value.item() == pytest.approx(kl(p, q), rel=1e-9)
