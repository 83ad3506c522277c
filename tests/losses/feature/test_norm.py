"""NORM against plain loops."""

import pytest
import torch

from kdlab.errors import InputError
from kdlab.losses import NORM
from kdlab.models import normed, resnet8
from kdlab.outputs import observe
from tests.losses.slow import draw, tapped

NO_TARGET = torch.zeros(1)


def slow(student, teacher):
    channels, total = teacher.shape[1], 0.0
    for b, c, h, w in torch.cartesian_prod(*map(torch.arange, student.shape)).tolist():
        total += (student[b, c, h, w].item() - teacher[b, c % channels, h, w].item()) ** 2
    return total / teacher.numel()


@pytest.mark.parametrize("copies", [1, 3])
def test_value(copies):
    ours, theirs = draw(2, 2 * copies, 3, 3, seed=1), draw(2, 2, 3, 3, seed=2)
    assert NORM()(tapped(ours), tapped(theirs), NO_TARGET).item() == pytest.approx(slow(ours, theirs), rel=1e-12)


def test_the_larger_map_is_max_pooled_and_layers_are_summed():
    small, large = draw(2, 4, 2, 2, seed=1), draw(2, 4, 4, 4, seed=2)
    pooled = torch.empty_like(small)
    for h in range(2):
        for w in range(2):
            pooled[:, :, h, w] = large[:, :, 2 * h : 2 * h + 2, 2 * w : 2 * w + 2].flatten(2).max(2).values
    expected = slow(small, pooled) + slow(pooled, small)
    loss = NORM()(tapped(small, large), tapped(large, small), NO_TARGET)
    assert loss.item() == pytest.approx(expected, rel=1e-12)


def test_height_and_width_are_pooled_to_the_smaller_of_each():
    ours, theirs = draw(2, 3, 2, 4, seed=1), draw(2, 3, 4, 2, seed=2)
    narrow = ours.unflatten(3, (2, 2)).amax(4)
    low = theirs.unflatten(2, (2, 2)).amax(3)
    assert NORM()(tapped(ours), tapped(theirs), NO_TARGET).item() == pytest.approx(slow(narrow, low), rel=1e-12)


def test_copies_of_the_teacher_are_the_minimum():
    theirs = draw(2, 3, 2, 2)
    assert NORM()(tapped(theirs.repeat(1, 4, 1, 1)), tapped(theirs), NO_TARGET).item() == 0


def test_it_fits_its_student():
    student, teacher = normed(resnet8(num_classes=5), "layer3", 64, copies=2), resnet8(num_classes=5)
    images = torch.rand(2, 3, 8, 8)
    loss = NORM()(observe(student, images, ["expand"]), observe(teacher, images, ["layer3"]), NO_TARGET)
    loss.backward()
    assert student.expand[0].weight.grad.any()
    assert student.trunk.conv1.weight.grad.any()


def test_other_channels_raise_input_error():
    ours, theirs = tapped(draw(2, 5, 2, 2), names=("low",)), tapped(draw(2, 2, 2, 2), names=("high",))
    with pytest.raises(InputError, match=r"multiple of the teacher's, but student layer 'low' gives \(2, 5, 2, 2\)"):
        NORM()(ours, theirs, NO_TARGET)
