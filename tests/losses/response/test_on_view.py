"""Losses on a view."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from kdlab.errors import InputError
from kdlab.losses import DKD, MLKD, Hint, Labels, OnView
from kdlab.outputs import Outputs
from tests.losses.slow import draw


def seen(seed, count=1):
    return replace(
        Outputs(draw(4, 3, seed=seed)),
        index=torch.arange(4),
        views={"strong": Outputs(draw(4 * count, 3, seed=seed + 10))},
    )


def test_the_loss_sees_the_view_alone():
    student, teacher, labels = seen(1), seen(2), torch.tensor([2, 0, 1, 1])
    value = OnView(DKD())(student, teacher, labels)
    assert value == DKD()(student.views["strong"], teacher.views["strong"], labels)


def test_several_inputs_a_sample_share_its_label_and_index():
    student, teacher, labels = seen(1, count=3), seen(2, count=3), torch.tensor([2, 0, 1, 1])
    loss = OnView()
    expected = Labels()(student.views["strong"], teacher.views["strong"], labels.repeat_interleave(3))
    assert loss(student, teacher, labels) == expected
    handed, _, _ = loss._on_view(student, teacher, labels)
    assert handed.index.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]


def test_needs():
    assert OnView(Hint(), view="weak").needs == ("layers", "views")
    assert OnView(Hint(), view="weak").views == ("weak",)
    assert OnView(MLKD(), view="plain").views == ("plain", *MLKD().views)
    with pytest.raises(InputError, match="'strong'"):
        OnView()(Outputs(torch.zeros(1, 2)), Outputs(torch.zeros(1, 2)), torch.tensor([0]))


class Handed(nn.Module):
    """Keeps its target."""

    needs = ("logits",)

    def forward(self, student, teacher, target):
        self.target = target
        return student.logits.sum()


@pytest.mark.parametrize("batch", [1, 2])
def test_targets_are_repeated_by_rows(batch):
    view = {"strong": Outputs(draw(3 * batch, 3))}
    side = replace(Outputs(draw(batch, 3)), views=view)
    soft, loss = draw(batch, 3, seed=1), OnView(Handed())
    loss(side, side, soft)
    assert torch.equal(loss.loss.target, soft.repeat_interleave(3, 0))


@pytest.mark.parametrize(("rows", "words"), [(4, r"must be \(2,\), one for each sample, not \(4,\)"), (0, "no sample")])
def test_views_of_fewer_inputs_are_refused(rows, words):
    view = {"strong": Outputs(draw(min(rows, 2), 3))}
    side = replace(Outputs(draw(rows, 3)), views=view)
    with pytest.raises(InputError, match=words):
        OnView()(side, side, torch.zeros(rows, dtype=torch.int64))
