"""Losses on regions, against plain loops."""

import pytest
import torch
from torch import nn

from kdlab.errors import InputError
from kdlab.losses import DIST, DKD, NKD, CurriculumTemperature, Hint, ScaleDecoupled, SoftTargets
from kdlab.losses.context import Context
from kdlab.outputs import Outputs
from tests.losses.slow import draw, kl, softmax, tapped

LABELS = torch.tensor([0, 2, 1, 2, 0])


def networks(student_channels=3, teacher_channels=4, bias=True):
    torch.manual_seed(3)
    return [nn.Linear(channels, 3, bias=bias).double() for channels in (student_channels, teacher_channels)]


def ready(loss, student, teacher):
    loss.setup(Context(student, (teacher,)))
    return loss


def cells(maps, classifier, grids):
    """Logits of every cell, the whole map first: [cell][sample][class]."""
    found = []
    for grid in grids:
        height, width = maps.shape[2] // grid, maps.shape[3] // grid
        for i in range(grid):
            for j in range(grid):
                part = maps[:, :, i * height : (i + 1) * height, j * width : (j + 1) * width].mean((2, 3))
                found.append(classifier(part).tolist())
    return found


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("grids", [(1, 2), (4, 2, 1), (1,)])
def test_value(grids, bias):
    student, teacher = networks(bias=bias)
    maps = draw(5, 3, 4, 4, seed=1, scale=3), draw(5, 4, 8, 8, seed=2, scale=6)
    ours, theirs = (cells(m, net, sorted(grids)) for m, net in zip(maps, (student, teacher), strict=True))
    total, twice = 0.0, 0
    for s_cell, t_cell in zip(ours, theirs, strict=True):
        for s, t, whole, y in zip(s_cell, t_cell, theirs[0], LABELS.tolist(), strict=True):
            right, right_as_a_whole = (row.index(max(row)) == y for row in (t, whole))
            twice += right != right_as_a_whole
            total += (1 + (right != right_as_a_whole)) * 4 * kl(softmax(t, 2), softmax(s, 2))
    loss = ready(ScaleDecoupled(SoftTargets(2.0), grids), student, teacher)(*map(tapped, maps), LABELS)
    assert loss.item() == pytest.approx(total / len(ours) / 5, rel=1e-11)
    assert (twice > 0) == (len(grids) > 1)


@pytest.mark.parametrize("inner", [SoftTargets(2.0), DKD(), NKD()])
def test_a_loss_without_values_of_samples_weighs_the_same(inner):
    class Plain(nn.Module):
        needs = ("logits", "classes")

        def forward(self, *sides):
            return inner(*sides)

    student, teacher = draw(5, 6, 3, seed=1).requires_grad_(), draw(5, 6, 3, seed=2)
    labels = torch.tensor([0, 2, 1, 2, 0, 1])
    values = [ScaleDecoupled(loss).compare(student, teacher, labels) for loss in (inner, Plain())]
    assert values[0].item() == pytest.approx(values[1].item(), rel=1e-12)
    gradients = [torch.autograd.grad(value, student)[0] for value in values]
    assert torch.allclose(*gradients, rtol=1e-10)


def test_student_classifier_is_trained_and_teachers_not_saved():
    student, teacher = networks()
    loss = ready(ScaleDecoupled(), student, teacher)
    maps = [tapped(draw(5, channels, 4, 4, seed=channels)) for channels in (3, 4)]
    loss(*maps, LABELS).backward()
    assert student.weight.grad.any()
    assert student.bias.grad.any()
    assert teacher.weight.grad is None
    assert not list(loss.parameters())
    assert not loss.state_dict()
    before = loss(*maps, LABELS)
    with torch.no_grad():
        teacher.weight.zero_()
        assert loss(*maps, LABELS) == before
        student.weight.zero_()
        assert loss(*maps, LABELS) != before


def test_a_loss_with_trained_parts_is_kept():
    assert [name for name, _ in ScaleDecoupled(CurriculumTemperature()).named_parameters()] == ["loss.theta"]


@pytest.mark.parametrize(
    ("student", "teacher", "grids", "words"),
    [
        ((5, 3, 4, 4), (5, 3, 4, 4), (1, 2), "teacher's classifier reads 4 channels, but the layer has 3"),
        ((5, 4, 4, 4), (5, 4, 4, 4), (1, 2), "student's classifier reads 3 channels"),
        ((5, 3, 4, 4), (5, 4, 2, 2), (1, 4), "finer than the teacher's maps"),
    ],
)
def test_maps_that_do_not_fit(student, teacher, grids, words):
    loss = ready(ScaleDecoupled(grids=grids), *networks())
    with pytest.raises(InputError, match=words):
        loss(tapped(torch.zeros(student)), tapped(torch.zeros(teacher)), LABELS)


def test_invalid_arguments_raise_input_error():
    for grids in ((2, 4), (1, 0), (1, 2.0), ()):
        with pytest.raises(InputError, match="grids"):
            ScaleDecoupled(grids=grids)
    with pytest.raises(InputError, match="Hint needs more"):
        ScaleDecoupled(Hint())
    with pytest.raises(InputError, match="setup"):
        ScaleDecoupled()(tapped(torch.zeros(5, 3, 4, 4)), tapped(torch.zeros(5, 4, 4, 4)), LABELS)
    two = tapped(torch.zeros(5, 3, 4, 4), torch.zeros(5, 3, 4, 4))
    with pytest.raises(InputError, match="not 2 pairs"):
        ready(ScaleDecoupled(DIST()), *networks())(two, two, LABELS)


def test_default_loss_is_the_papers():
    loss = ScaleDecoupled().loss
    assert isinstance(loss, DKD)
    assert (loss.alpha, loss.beta, loss.temperature) == (1, 8, 4)


def test_logits_are_not_read():
    student, teacher = networks()
    maps = draw(5, 3, 4, 4), draw(5, 4, 4, 4)
    loss = ready(ScaleDecoupled(), student, teacher)
    other = [Outputs(torch.full((5, 7), torch.nan).double(), (m,)) for m in maps]
    assert loss(*other, LABELS) == loss(*map(tapped, maps), LABELS)
