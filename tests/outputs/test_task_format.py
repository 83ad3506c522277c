"""Which kind of targets a task of the user's own has, and what that means."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kdlab.outputs.task_format import TaskFormat, task_format


@pytest.mark.parametrize(
    ("targets", "kind"),
    [
        ([[0.25, 0.75, 0.0], [1.0, 0.0, 0.0]], "soft"),
        ([[0.5, 0.5, 0.9], [0.2, 0.1, 0.3]], "other"),  # fractions, and no distribution
        ([[0.5, 0.5, 0.0], [0.2, 0.1, 0.3]], "other"),  # one row is one
        ([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], "other"),  # several labels may look like this
        ([[1.5, -0.5, 0.0], [0.5, 0.5, 0.0]], "other"),
    ],
)
def test_soft_labels_are_rows_of_probabilities(targets, kind):
    found = task_format(nn.Identity(), torch.zeros(2, 3), torch.tensor(targets))
    assert (found.kind, found.axis) == (kind, 1)


@pytest.mark.parametrize(("shape", "kind"), [((4,), "binary"), ((4, 1), "binary"), ((4, 3), "multilabel")])
def test_one_logit_is_binary_and_several_are_labels(shape, kind):
    assert task_format(nn.BCEWithLogitsLoss(), torch.zeros(shape), torch.ones(shape)).kind == kind


@pytest.mark.parametrize(("mask", "counted"), [(None, 5), ([[1, 1, 0], [1, 1, 1]], 4)])
def test_positions_that_count_are_labeled_and_attended(mask, counted):
    target = torch.tensor([[1, 2, 0], [3, -100, 1]])
    mask = None if mask is None else torch.tensor(mask)
    assert int(TaskFormat("classes", 1, -100).counted(6, target, mask).sum()) == counted


@pytest.mark.parametrize("weight", [None, torch.tensor([1.0, 3.0, 0.5, 2.0])])
@pytest.mark.parametrize("ignored", [False, True])
def test_weight_is_what_torchs_mean_divides_by(weight, ignored):
    target = torch.tensor([1, 2, 0, 3, -100 if ignored else 1])
    logits = torch.randn(5, 4).double()
    weight = None if weight is None else weight.double()
    total = F.cross_entropy(logits, target, weight, reduction="sum")
    mean = F.cross_entropy(logits, target, weight)
    count = TaskFormat("classes", 1, -100).weight(nn.CrossEntropyLoss(weight), target)
    assert float(total / count) == pytest.approx(float(mean), rel=1e-12)


def test_weight_without_a_label_to_ignore_is_every_row():
    assert int(TaskFormat("classes", 1, None).weight(nn.CrossEntropyLoss(), torch.tensor([1, -100, 2]))) == 3
