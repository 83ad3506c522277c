"""OFA against plain loops, and its exits."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from kdlab.errors import InputError
from kdlab.losses import OFA
from kdlab.outputs import Outputs
from tests.losses.slow import draw, softmax, tapped

LABELS = torch.tensor([0, 4, 2, 1])
TEACHER = Outputs(draw(4, 5, seed=2, scale=2))


def slow(student, teacher, labels, gamma, temperature):
    total = 0.0
    for s, t, y in zip(student.tolist(), teacher.tolist(), labels.tolist(), strict=True):
        p, q = softmax(t, temperature), softmax(s, temperature)
        for k in range(len(p)):
            here = float(k == y)
            total -= ((p[k] + here) ** gamma - here) * math.log(q[k])
    return total / len(labels)


def with_layers(seed=1):
    layers = draw(4, 3, 8, 8, seed=5), draw(4, 6, 4, 4, seed=6), draw(4, 10, 2, 2, seed=7)
    return replace(tapped(*layers), logits=draw(4, 5, seed=seed, scale=2))


@pytest.mark.parametrize(("gamma", "temperature"), [(1.0, 1.0), (1.5, 1.0), (0.5, 2.0), (2.0, 0.7)])
def test_value(gamma, temperature):
    student = draw(4, 5, seed=1, scale=2)
    loss = OFA(gamma, temperature)(Outputs(student), TEACHER, LABELS)
    assert loss.item() == pytest.approx(slow(student, TEACHER.logits, LABELS, gamma, temperature), rel=1e-11)


def test_exits_answer_like_the_student():
    loss, student = OFA(1.5, exits=True, exit_weight=0.3), with_layers()
    value = loss(student, TEACHER, LABELS)
    answers = [branch(layer) for branch, layer in zip(loss.branches, student.layers, strict=True)]
    assert [answer.shape for answer in answers] == [(4, 5)] * 3
    terms = [slow(z, TEACHER.logits, LABELS, 1.5, 1.0) for z in (student.logits, *answers)]
    assert value.item() == pytest.approx(terms[0] + 0.3 * sum(terms[1:]), rel=1e-10)


def test_exits_halve_the_map_down_to_the_smallest():
    loss = OFA(exits=True)
    loss(with_layers(), TEACHER, LABELS)
    sizes = [
        [tuple(part(layer).shape[1:]) for part in [branch[:i] for i in range(1, len(branch) - 2)]]
        for branch, layer in zip(loss.branches, with_layers().layers, strict=True)
    ]
    assert sizes == [[(6, 4, 4), (10, 2, 2)], [(10, 2, 2)], [(10, 2, 2)]]


def test_exits_halve_maps_and_have_the_largest_width():
    layers = draw(4, 3, 16, 8), draw(4, 12, 10, 5), draw(4, 10, 6, 3)
    loss = OFA(exits=True)
    loss(replace(tapped(*layers), logits=draw(4, 5)), TEACHER, LABELS)
    assert [branch[-1].in_features for branch in loss.branches] == [12] * 3
    assert [branch[:-3](layer).shape[2:] for branch, layer in zip(loss.branches, layers, strict=True)] == [
        (8, 4),
        (5, 3),
        (6, 3),
    ]


def test_first_weights_of_exits():
    loss = OFA(exits=True)
    loss(replace(tapped(draw(4, 100, 2, 2), draw(4, 300, 2, 2)), logits=draw(4, 5)), TEACHER, LABELS)
    convolution, answer = loss.branches[0][0], loss.branches[0][-1]
    assert convolution.weight.std().item() == pytest.approx((2 / 300) ** 0.5, rel=0.03)
    assert answer.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert not answer.bias.any()


def test_tensors_of_an_exit():
    loss = OFA(exits=True)
    loss(with_layers(), TEACHER, LABELS)
    halving, last = loss.branches[0][0], loss.branches[0][-1]
    assert [tuple(x.shape) for x in halving.parameters() if x.dim() > 1] == [
        (3, 1, 3, 3),
        (3, 3, 1, 1),
        (3, 1, 3, 3),
        (6, 3, 1, 1),
    ]
    assert all(part.bias is None for part in halving if isinstance(part, nn.Conv2d))
    assert [type(part) for part in halving[:4]] == [nn.Conv2d, nn.Conv2d, nn.BatchNorm2d, nn.ReLU]
    assert tuple(last.weight.shape) == (5, 10)
    assert tuple(loss.branches[2][0].weight.shape) == (10, 10, 1, 1)


def test_exits_are_trained_and_train_the_layers():
    loss, student = OFA(exits=True), with_layers().map(lambda x: x.requires_grad_())
    loss(student, TEACHER, LABELS).backward()
    assert all(parameter.grad is not None for parameter in loss.parameters())
    assert all(layer.grad.any() for layer in student.layers)


def test_exits_survive_saving():
    student, teacher = (each.map(torch.Tensor.float) for each in (with_layers(), TEACHER))
    old, new = OFA(exits=True), OFA(exits=True)
    old(student, teacher, LABELS)
    new.load_state_dict(old.state_dict())
    assert new.eval()(student, teacher, LABELS) == old.eval()(student, teacher, LABELS)


def test_exits_in_half_precision():
    student, teacher = (each.map(torch.Tensor.bfloat16) for each in (with_layers(), TEACHER))
    loss = OFA(exits=True)
    first = loss(student, teacher, LABELS)
    second = loss.bfloat16()(student, teacher, LABELS)
    assert first.dtype is second.dtype is torch.float32
    assert second.item() == pytest.approx(first.item(), rel=0.01)


def test_needs():
    assert OFA().needs == ("logits", "classes")
    assert OFA(exits=True).needs == ("logits", "classes", "student_layers")
    with pytest.raises(InputError, match="student_layers"):
        OFA(exits=True)(Outputs(draw(4, 5)), TEACHER, LABELS)
    fewer = replace(with_layers(), layers=(draw(3, 6, 4, 4),), names=())
    with pytest.raises(InputError, match="of the batch"):
        OFA(exits=True)(fewer, TEACHER, LABELS)
    flat = replace(with_layers(), layers=(draw(4, 6),), names=())
    with pytest.raises(InputError, match="maps"):
        OFA(exits=True)(flat, TEACHER, LABELS)


def test_confident_student_has_a_finite_value():
    student = torch.tensor([[300.0, 0.0, -300.0]], requires_grad=True)
    loss = OFA()(Outputs(student), Outputs(torch.tensor([[0.0, 0.0, 300.0]])), torch.tensor([1]))
    loss.backward()
    assert loss.item() == pytest.approx(600.0)
    assert student.grad.isfinite().all()
