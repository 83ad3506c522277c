"""The difference of means against plain loops, and where its gradient goes."""

import pytest
import torch

from kdlab.losses import MeanDifference
from kdlab.outputs import Outputs
from tests.losses.slow import draw


def side(seed: int, width: int) -> Outputs:
    embedding = draw(4, width, seed=seed).requires_grad_()
    return Outputs(embedding[:, :2], embedding=embedding)


def test_value() -> None:
    student, teacher = side(1, 5), side(2, 7)
    means = [sum(sum(row) for row in x.embedding.tolist()) / x.embedding.numel() for x in (student, teacher)]
    value = MeanDifference()(student, teacher, torch.zeros(4))
    assert value.item() == pytest.approx((means[0] - means[1]) ** 2, rel=1e-10)


@pytest.mark.parametrize("through", [False, True])
def test_the_teachers_gradient_is_asked_for(through: bool) -> None:
    student, teacher = side(1, 5), side(2, 5)
    MeanDifference(teacher_gradient=through)(student, teacher, torch.zeros(4)).backward()
    assert student.embedding.grad.any()
    assert (teacher.embedding.grad is not None) == through
