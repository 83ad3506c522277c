"""Cross-entropy with true labels, and with the teacher's decision, against plain loops."""

import math

import pytest
import torch

from kdlab.errors import InputError
from kdlab.losses import HardLabels, Labels
from kdlab.outputs import Outputs
from tests.losses.slow import draw, softmax


def slow(student, labels):
    rows = zip(student.tolist(), labels, strict=True)
    return -sum(math.log(softmax(s)[y]) for s, y in rows) / len(labels)


def test_labels():
    student, labels = draw(4, 3, seed=1, scale=2), torch.tensor([2, 0, 1, 1])
    loss = Labels()(Outputs(student), Outputs(draw(4, 3, seed=2)), labels)
    assert loss.item() == pytest.approx(slow(student, labels.tolist()), rel=1e-12)


def test_the_teachers_decision():
    student, teacher = draw(4, 3, seed=1, scale=2), draw(4, 3, seed=2)
    decisions = [row.index(max(row)) for row in teacher.tolist()]
    assert len(set(decisions)) > 1
    loss = HardLabels()(Outputs(student), Outputs(teacher), torch.zeros(1))
    assert loss.item() == pytest.approx(slow(student, decisions), rel=1e-12)


@pytest.mark.parametrize("loss", [Labels(), HardLabels()])
def test_empty_batch_raises_input_error(loss):
    nothing = Outputs(torch.zeros(0, 3))
    with pytest.raises(InputError, match="no sample"):
        loss(nothing, nothing, torch.zeros(0, dtype=torch.int64))
