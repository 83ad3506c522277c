"""TTM and WTTM against plain loops."""

import pytest
import torch

from kdlab.losses import TTM, WTTM
from kdlab.outputs import Outputs
from tests.losses.slow import draw, kl, softmax

NO_TARGET = torch.zeros(1)


def slow(student, teacher, power, weighted):
    total = 0.0
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        powers = [p**power for p in softmax(t)]
        term = kl([p / sum(powers) for p in powers], softmax(s))
        total += term * (sum(powers) if weighted else 1)
    return total / len(student)


@pytest.mark.parametrize("power", [0.1, 0.25, 1.0, 2.0])
@pytest.mark.parametrize(("kind", "weighted"), [(TTM, False), (WTTM, True)])
def test_value(kind, weighted, power):
    student, teacher = draw(6, 5, seed=1, scale=2), draw(6, 5, seed=2, scale=2)
    loss = kind(power)(Outputs(student), Outputs(teacher), NO_TARGET)
    assert loss.item() == pytest.approx(slow(student, teacher, power, weighted), rel=1e-11)


@pytest.mark.parametrize("kind", [TTM, WTTM])
def test_zero_at_the_transformed_teacher(kind):
    teacher = draw(6, 5, seed=2, scale=3)
    assert kind(0.2)(Outputs(0.2 * teacher + 1), Outputs(teacher), NO_TARGET).item() == pytest.approx(0, abs=1e-12)


def test_the_tail_of_a_sure_teacher_is_kept_in_float32():
    teacher = torch.tensor([[0.0, -150.0, -300.0]])  # softmax gives 1, 0, 0
    loss = TTM(0.01)(Outputs(torch.zeros(1, 3)), Outputs(teacher), NO_TARGET)
    assert loss.item() == pytest.approx(kl(softmax([0, -1.5, -3]), [1 / 3] * 3), rel=1e-5)
