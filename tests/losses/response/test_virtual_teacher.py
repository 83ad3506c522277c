"""The virtual teacher against plain loops, in the paper's form and in the released one."""

import math

import pytest
import torch

from kdlab.errors import InputError
from kdlab.losses import VirtualTeacher
from kdlab.outputs import Outputs
from tests.losses.slow import draw, kl, softmax

STUDENT, LABELS = draw(4, 5, seed=1, scale=2), torch.tensor([0, 4, 2, 1])
SIDES = Outputs(STUDENT), Outputs(draw(4, 5, seed=2)), LABELS


def slow(student, labels, correct, temperature, form):
    rows = []
    for s, y in zip(student.tolist(), labels.tolist(), strict=True):
        taught = [correct if k == y else (1 - correct) / (len(s) - 1) for k in range(len(s))]
        if form == "paper":
            powers = [p ** (1 / temperature) for p in taught]
            rows.append(kl([p / sum(powers) for p in powers], softmax(s, temperature)))
        else:
            rows.append(kl(softmax(taught, temperature), softmax(s)) / len(s))
    return rows


@pytest.mark.parametrize("form", ["paper", "released"])
@pytest.mark.parametrize(("correct", "temperature"), [(0.99, 20.0), (0.9, 1.0), (0.6, 0.5)])
def test_value(form, correct, temperature):
    loss, rows = VirtualTeacher(correct, temperature, form), slow(STUDENT, LABELS, correct, temperature, form)
    assert loss(*SIDES).item() == pytest.approx(sum(rows) / 4, rel=1e-10)
    assert loss.per_sample(*SIDES).tolist() == pytest.approx(rows, rel=1e-10)


@pytest.mark.parametrize(("temperature", "own", "other"), [(20.0, 0.010502, 0.009995), (40.0, 0.010248, 0.009997)])
def test_released_form_with_100_classes(temperature, own, other):
    even = torch.zeros(2, 100, dtype=torch.float64, requires_grad=True)
    VirtualTeacher(temperature=temperature, form="released")(
        Outputs(even), Outputs(even), torch.tensor([3, 7])
    ).backward()
    taught = 1 / 100 - even.grad * 2 * 100  # the gradient is (q - p) / (B K), and q is 1 / K here
    assert taught[0, 3].item() == pytest.approx(own, abs=5e-7)
    assert taught[0, 4].item() == pytest.approx(other, abs=5e-7)
    assert taught.sum(1).tolist() == pytest.approx([1.0, 1.0])


def test_paper_form_is_0_for_the_virtual_teacher():
    taught = torch.full((4, 5), math.log(0.01 / 4), dtype=torch.float64)
    taught[torch.arange(4), LABELS] = math.log(0.99)
    loss = VirtualTeacher(temperature=7.0, form="paper")
    assert loss(Outputs(taught), Outputs(taught), LABELS).item() == pytest.approx(0, abs=1e-15)


def test_invalid_inputs_raise_input_error():
    one = Outputs(torch.zeros(2, 1))
    with pytest.raises(InputError, match="at least 2 classes"):
        VirtualTeacher()(one, one, torch.zeros(2, dtype=torch.int64))
    with pytest.raises(InputError, match="form must be 'paper' or 'released', not 'code'"):
        VirtualTeacher(form="code")
    with pytest.raises(InputError, match="correct must be below 1"):
        VirtualTeacher(1.0)
