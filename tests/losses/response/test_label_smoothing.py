"""Label smoothing against plain loops, in both its conventions."""

import math

import pytest
import torch

from kdlab.errors import InputError
from kdlab.losses import Labels, LabelSmoothing
from kdlab.outputs import Outputs
from tests.losses.slow import draw, softmax

STUDENT, LABELS = draw(4, 5, seed=1, scale=2), torch.tensor([0, 4, 2, 1])
SIDES = Outputs(STUDENT), Outputs(draw(4, 5, seed=2)), LABELS


def slow(student, labels, epsilon, over):
    rows = []
    for s, y in zip(student.tolist(), labels.tolist(), strict=True):
        classes = len(s)
        if over == "all":
            smoothed = [epsilon / classes + (1 - epsilon) * (k == y) for k in range(classes)]
        else:
            smoothed = [1 - epsilon if k == y else epsilon / (classes - 1) for k in range(classes)]
        rows.append(-sum(u * math.log(q) for u, q in zip(smoothed, softmax(s), strict=True)))
    return rows


@pytest.mark.parametrize("over", ["all", "others"])
@pytest.mark.parametrize("epsilon", [0.0, 0.1, 0.7])
def test_value(over, epsilon):
    loss, rows = LabelSmoothing(epsilon, over), slow(STUDENT, LABELS, epsilon, over)
    assert loss(*SIDES).item() == pytest.approx(sum(rows) / 4, rel=1e-12)
    assert loss.per_sample(*SIDES).tolist() == pytest.approx(rows, rel=1e-12)


def test_the_conventions_differ_by_the_amount_that_is_spread():
    assert LabelSmoothing(0.1, "others")(*SIDES).item() == pytest.approx(LabelSmoothing(0.125)(*SIDES).item())
    assert LabelSmoothing(0.1, "others")(*SIDES).item() != pytest.approx(LabelSmoothing(0.1)(*SIDES).item(), rel=1e-3)


@pytest.mark.parametrize("over", ["all", "others"])
def test_nothing_spread_is_the_labels(over):
    assert LabelSmoothing(0.0, over)(*SIDES).item() == pytest.approx(Labels()(*SIDES).item(), rel=1e-12)


def test_invalid_inputs_raise_input_error():
    one = Outputs(torch.zeros(2, 1))
    with pytest.raises(InputError, match="at least 2 classes"):
        LabelSmoothing(over="others")(one, one, torch.zeros(2, dtype=torch.int64))
    with pytest.raises(InputError, match="over must be 'all' or 'others', not 'wrong'"):
        LabelSmoothing(over="wrong")
    with pytest.raises(InputError, match="epsilon must be below 1"):
        LabelSmoothing(1.0)
