"""CAMKDFeatures against plain loops."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kdlab.errors import InputError
from kdlab.losses import CAMKDFeatures
from kdlab.losses.checks import Pair
from kdlab.losses.context import Context
from kdlab.losses.feature.camkd import _resized, weighted
from tests.losses.slow import dot, draw, softmax, tapped

LABELS = torch.tensor([2, 0, 1, 2])
WIDTHS = (3, 5, 4)
NAMES = ("0.last", "1.last", "2.last")


def teachers(bias=True):
    torch.manual_seed(1)
    return tuple(nn.Linear(width, 3, bias=bias).double() for width in WIDTHS)


def ready(names=NAMES, bias=True):
    loss = CAMKDFeatures()
    loss.setup(Context(nn.Identity(), teachers(bias), ("last",) * len(names), names))
    return loss


def sides(size=8):
    student = draw(4, 2, size, size, seed=1)
    return tapped(student, student, student), tapped(*(draw(4, w, 4, 4, seed=w) for w in WIDTHS))


def slow(loss, student, teacher, classifiers):
    """The mean over teachers and samples, from projected maps."""
    wrong, errors = [], []
    for project, x, y, fc in zip(loss.projections, student.layers, teacher.layers, classifiers, strict=True):
        z = project(F.avg_pool2d(x, 2) if x.shape[2] > 4 else F.interpolate(x, size=(4, 4), mode="bilinear"))
        errors.append(
            [
                sum((a - b) ** 2 for a, b in zip(p, q, strict=True)) / len(p)
                for p, q in zip(rows(z), rows(y), strict=True)
            ]
        )
        pooled = [[sum(channel) / 16 for channel in sample] for sample in z.flatten(2).tolist()]
        bias = fc.bias.tolist() if fc.bias is not None else [0.0] * 3
        logits = [[dot(w, p) + b for w, b in zip(fc.weight.tolist(), bias, strict=True)] for p in pooled]
        wrong.append([-math.log(softmax(row)[label]) for row, label in zip(logits, LABELS.tolist(), strict=True)])
    total = 0.0
    for b in range(4):
        shares = softmax([each[b] for each in wrong])
        total += sum((1 - share) / 2 * each[b] for share, each in zip(shares, errors, strict=True))
    return total / 12


def rows(x):
    return x.flatten(1).tolist()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("size", [8, 4, 3])
def test_value(size, bias):
    loss, (student, teacher) = ready(bias=bias), sides(size)
    got = loss(student, teacher, LABELS).item()
    assert got == pytest.approx(slow(loss, student, teacher, teachers(bias)), rel=1e-9)


@pytest.mark.parametrize(("size", "pooled"), [((8, 2), True), ((2, 8), False)])
def test_the_height_decides_between_pooling_and_enlarging(size, pooled):
    x = draw(2, 3, *size)
    pair = Pair(x, draw(2, 5, 4, 4), "", "")
    enlarged = F.interpolate(x, size=(4, 4), mode="bilinear")
    assert torch.allclose(_resized(pair), F.adaptive_avg_pool2d(x, 4) if pooled else enlarged)
    assert not torch.allclose(F.adaptive_avg_pool2d(x, 4), enlarged)


def test_the_gradient_goes_through_the_weights():
    maps = [draw(4, 2, 2, 2, seed=seed) for seed in (1, 2)]
    logits = [draw(4, 3, seed=seed).requires_grad_() for seed in (3, 4)]
    weighted(maps, [x + 1 + i for i, x in enumerate(maps)], logits, LABELS).backward()
    assert all(each.grad.any() for each in logits)


def test_the_teachers_classifiers_are_neither_trained_nor_saved():
    loss = ready()
    loss(*sides(), LABELS)
    assert {name.split(".")[0] for name, _ in loss.named_parameters()} == {"projections"}
    assert {name.split(".")[0] for name in loss.state_dict()} == {"projections", "_extra_state"}
    kept = loss.get_buffer("weight_1").clone()
    loss.setup(Context(nn.Identity(), teachers(), ("last",) * 3, NAMES))
    assert torch.equal(loss.get_buffer("weight_1"), kept)


def test_invalid_inputs_raise_input_error():
    student, teacher = sides()
    for given, names, words in (
        (teachers()[:1], ("0.last",), "at least two"),
        (teachers(), NAMES[:2], "one layer of each of the 3 teachers"),
        (teachers(), (*NAMES, "3.last"), "one layer of each of the 3 teachers"),
        (teachers(), ("1.last", "0.last", "2.last"), "in their order"),
    ):
        with pytest.raises(InputError, match=words):
            CAMKDFeatures().setup(Context(nn.Identity(), given, ("last",) * len(names), names))
    for count, loss in ((2, ready()), (4, ready()), (1, CAMKDFeatures())):
        layers = [(2 * x.layers)[:count] for x in (student, teacher)]
        with pytest.raises(InputError, match=f"set up for {loss.teachers} teachers, but meets {count}"):
            loss(tapped(*layers[0]), tapped(*layers[1]), LABELS)
    assert CAMKDFeatures().teachers == 0
    one = draw(1, 2, 1, 1)
    with pytest.raises(InputError, match="more than one value per channel"):
        ready()(tapped(one, one, one), tapped(*(draw(1, w, 1, 1) for w in WIDTHS)), LABELS[:1])
    for channels in (4, 6):
        with pytest.raises(InputError, match=f"reads 5 features, but the layer has {channels}"):
            ready()(student, tapped(teacher.layers[0], draw(4, channels, 2, 2), teacher.layers[2]), LABELS)
