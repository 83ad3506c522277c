"""DKD against plain loops."""

import math

import pytest
import torch

from kdlab.errors import InputError
from kdlab.losses import DKD
from kdlab.outputs import Outputs
from tests.losses.slow import draw, kl, softmax


def slow(student, teacher, labels, alpha, beta, temperature):
    total = 0.0
    for s, t, y in zip(student.tolist(), teacher.tolist(), labels.tolist(), strict=True):
        p, q = softmax(t, temperature), softmax(s, temperature)
        rest_p, rest_q = ([v for k, v in enumerate(x) if k != y] for x in (p, q))
        target = kl([p[y], sum(rest_p)], [q[y], sum(rest_q)])
        others = kl([v / sum(rest_p) for v in rest_p], [v / sum(rest_q) for v in rest_q])
        total += temperature**2 * (alpha * target + beta * others)
    return total / len(labels)


@pytest.mark.parametrize(("alpha", "beta", "temperature"), [(1, 8, 4), (0, 1, 1), (1, 0, 1), (0.5, 2.5, 0.7)])
def test_value(alpha, beta, temperature):
    student, teacher, labels = (
        draw(6, 5, seed=1, scale=2),
        draw(6, 5, seed=2, scale=2),
        torch.tensor([0, 4, 2, 1, 3, 0]),
    )
    loss = DKD(alpha, beta, temperature)(Outputs(student), Outputs(teacher), labels)
    assert loss.item() == pytest.approx(slow(student, teacher, labels, alpha, beta, temperature), rel=1e-11)


def test_equal_weights_of_a_binary_task_are_plain_distillation():
    student, teacher, labels = draw(4, 2, seed=1), draw(4, 2, seed=2), torch.tensor([0, 1, 1, 0])
    loss = DKD(alpha=1.0, beta=100.0, temperature=1.0)(Outputs(student), Outputs(teacher), labels)
    rows = zip(student.tolist(), teacher.tolist(), strict=True)
    assert loss.item() == pytest.approx(sum(kl(softmax(t), softmax(s)) for s, t in rows) / 4, rel=1e-12)


def test_confident_networks_give_a_finite_value():
    student = torch.tensor([[300.0, 0.0, -10.0]], requires_grad=True)
    teacher = torch.tensor([[-100.0, 300.0, 0.0]])
    loss = DKD(alpha=1.0, beta=0.0, temperature=1.0)(Outputs(student), Outputs(teacher), torch.tensor([0]))
    loss.backward()
    assert loss.item() == pytest.approx(300.0)  # p_y = 0, so log(1 / (1 - q_y)) = 300
    assert student.grad[0, 0].item() == pytest.approx(1.0)
    assert not math.isnan(student.grad.sum().item())


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8])
def test_any_integer_labels(dtype):
    student, teacher, labels = draw(3, 4, seed=1), draw(3, 4, seed=2), torch.tensor([3, 0, 1])
    losses = [DKD()(Outputs(student), Outputs(teacher), each) for each in (labels, labels.to(dtype))]
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    ("logits", "target", "words"),
    [
        ((3, 4), torch.zeros(3), "integer class labels"),
        ((3, 4), torch.zeros(3, dtype=torch.bool), "integer class labels"),
        ((3, 4), torch.zeros(3, dtype=torch.complex64), "integer class labels"),
        ((3, 4), torch.zeros(3, 4), "integer class labels"),
        ((3, 4), torch.zeros(3, 4, dtype=torch.int64), r"\(3,\)"),
        ((3, 4), torch.zeros(2, dtype=torch.int64), r"\(3,\)"),
        ((3, 5, 4), torch.zeros(3, dtype=torch.int64), r"\(B, K\)"),
        ((3, 1), torch.zeros(3, dtype=torch.int64), "at least 2 classes"),
    ],
)
def test_invalid_inputs_raise_input_error(logits, target, words):
    with pytest.raises(InputError, match=words):
        DKD()(Outputs(torch.zeros(logits)), Outputs(torch.zeros(logits)), target)


def test_class_counts_are_named():
    with pytest.raises(InputError, match="3 classes and the teacher 5"):
        DKD()(Outputs(torch.zeros(2, 3)), Outputs(torch.zeros(2, 5)), torch.zeros(2, dtype=torch.int64))


@pytest.mark.parametrize("arguments", [{"alpha": -1}, {"beta": -0.1}, {"temperature": 0}, {"beta": float("nan")}])
def test_bad_numbers(arguments):
    with pytest.raises(InputError, match=next(iter(arguments))):
        DKD(**arguments)
