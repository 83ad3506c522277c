"""NKD against plain loops."""

import math

import pytest
import torch

from kdlab.errors import InputError
from kdlab.losses import NKD
from kdlab.outputs import Outputs
from tests.losses.slow import draw, softmax


def slow(student, teacher, labels, gamma, temperature):
    total = 0.0
    for s, t, y in zip(student.tolist(), teacher.tolist(), labels.tolist(), strict=True):
        total -= softmax(t)[y] * math.log(softmax(s)[y])
        q, p = (softmax([v for k, v in enumerate(x) if k != y], temperature) for x in (s, t))
        total -= gamma * temperature**2 * sum(a * math.log(b) for a, b in zip(p, q, strict=True))
    return total / len(labels)


@pytest.mark.parametrize(("gamma", "temperature"), [(1.5, 1.0), (3.5, 3.0), (0.0, 2.0), (1.0, 0.5)])
def test_value(gamma, temperature):
    student, teacher, labels = draw(4, 5, seed=1, scale=2), draw(4, 5, seed=2, scale=2), torch.tensor([0, 4, 2, 1])
    loss = NKD(gamma, temperature)(Outputs(student), Outputs(teacher), labels)
    assert loss.item() == pytest.approx(slow(student, teacher, labels, gamma, temperature), rel=1e-11)


def test_one_class_raises_input_error():
    one = Outputs(torch.zeros(2, 1))
    with pytest.raises(InputError, match="at least 2 classes"):
        NKD()(one, one, torch.zeros(2, dtype=torch.int64))
