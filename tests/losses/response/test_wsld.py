"""WSLD against plain loops."""

import math

import pytest
import torch

from kdlab.losses import WSLD
from kdlab.outputs import Outputs
from tests.losses.slow import draw, softmax

LABELS = torch.tensor([0, 4, 2, 1])


def weight(s, t, y):
    return 1 - math.exp(math.log(softmax(s)[y]) / (-math.log(softmax(t)[y]) + 1e-7))


def term(s, t, temperature):
    p, q = softmax(t, temperature), softmax(s, temperature)
    return -(temperature**2) * sum(a * math.log(b) for a, b in zip(p, q, strict=True))


@pytest.mark.parametrize("temperature", [0.5, 2.0, 4.0])
def test_value_and_gradient_with_held_weights(temperature):
    student, teacher = draw(4, 5, seed=1, scale=2).requires_grad_(), draw(4, 5, seed=2, scale=2)
    loss = WSLD(temperature)(Outputs(student), Outputs(teacher), LABELS)
    rows = list(zip(student.tolist(), teacher.tolist(), LABELS.tolist(), strict=True))
    weights = [weight(s, t, y) for s, t, y in rows]
    expected = [w * term(s, t, temperature) for w, (s, t, _) in zip(weights, rows, strict=True)]
    assert loss.item() == pytest.approx(sum(expected) / 4, rel=1e-11)
    loss.backward()
    for w, (s, t, _), gradient in zip(weights, rows, student.grad.tolist(), strict=True):
        q, p = softmax(s, temperature), softmax(t, temperature)
        assert gradient == pytest.approx(
            [w * temperature * (b - a) / 4 for a, b in zip(p, q, strict=True)], rel=1e-9, abs=1e-12
        )


def test_weights_of_confident_networks_differ_in_float32():
    surer, sure = torch.tensor([[40.0, 0.0]]), torch.tensor([[18.0, 0.0]])
    labels = torch.tensor([0])
    plain = [4.0**2 * term(s[0].tolist(), sure[0].tolist(), 4.0) for s in (surer, sure)]
    ratio = [
        WSLD()(Outputs(s), Outputs(sure), labels).item() / value for s, value in zip((surer, sure), plain, strict=True)
    ]
    lost = math.log1p(math.exp(-18))
    assert ratio[0] == pytest.approx(0, abs=1e-9)
    assert ratio[1] * 16 == pytest.approx(1 - math.exp(-lost / (lost + 1e-7)), rel=1e-4)
