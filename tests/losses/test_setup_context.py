"""What a loss finds in its context."""

import pytest
import torch
from torch import nn

from kdlab.errors import InputError
from kdlab.losses.context import Context, copied
from kdlab.outputs.task_format import CLASS_SCORES
from tests.modules.cotraining import branched, image_net


@pytest.mark.parametrize("head", ["", "branch1"])
def test_classifier_is_that_of_the_sides_head(head):
    net, plain = branched(), image_net()
    (expected,) = (m for m in net.get_submodule(head or "network").modules() if isinstance(m, nn.Linear))
    assert Context(net, (plain,), student_head=head).classifier("student") is expected
    assert Context(plain, (net,), teacher_head=head).classifier("teacher") is expected


def test_layers_are_found_by_name_or_call_on_either_side():
    student, teacher = image_net(), image_net()
    context = Context(student, (teacher,))
    for side, net in (("student", student), ("teacher", teacher)):
        assert context.layer(side, "layer2.0.conv1") is net.layer2[0].conv1
        assert context.layer(side, "relu@1") is net.relu
    with pytest.raises(InputError, match=r"ResNet has no layer 'layer9'; the nearest names are .*layer"):
        context.layer("student", "layer9")


def test_classifiers_of_several_teachers_by_number():
    teachers = nn.Linear(2, 3), nn.Linear(2, 3)
    context = Context(nn.Linear(2, 3), teachers)
    assert [context.classifier("teacher", number) for number in (0, 1)] == list(teachers)
    with pytest.raises(InputError, match="Identity has none on its embedding"):
        Context(nn.Identity(), teachers).classifier("student")


@pytest.mark.parametrize("count", [0, 2])
def test_the_only_teacher_is_one(count):
    with pytest.raises(InputError, match=f"not an ensemble of {count}"):
        _ = Context(nn.Identity(), (nn.Identity(),) * count).teacher


def test_the_teacher_is_frozen_unless_said():
    net = nn.Identity()
    context = Context(net, (net,))
    assert context.teacher is net
    assert (context.samples, context.labels, context.batch_size, context.classes) == (None, None, None, 0)
    assert (context.form, context.device) == (CLASS_SCORES, torch.device("cpu"))
    with pytest.raises(InputError, match="frozen teacher"):
        _ = Context(net, (net,), fixed=False).teacher


def test_a_copy_can_be_used_in_training():
    weight = nn.Parameter(torch.ones(2))
    with torch.inference_mode():
        copy = copied(weight)
    assert not copy.is_inference()
    assert not copy.requires_grad
    assert copy.data_ptr() != weight.data_ptr()
    assert copied(None) is None
