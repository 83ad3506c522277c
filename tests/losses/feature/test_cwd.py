"""CWD against plain loops."""

import pytest
import torch

from kdlab.errors import InputError
from kdlab.losses import CWD
from tests.losses.slow import draw, kl, softmax, tapped

NO_TARGET = torch.zeros(1)


def slow(student, teacher, temperature):
    values = [
        kl(softmax(t.flatten().tolist(), temperature), softmax(s.flatten().tolist(), temperature))
        for ours, theirs in zip(student, teacher, strict=True)
        for s, t in zip(ours, theirs, strict=True)
    ]
    return temperature**2 * sum(values) / len(values)


@pytest.mark.parametrize("temperature", [0.5, 4.0])
def test_value(temperature):
    students, teachers = ([draw(3, 2, 4, 3, seed=i), draw(3, 5, 2, 2, seed=i + 1)] for i in (0, 10))
    loss = CWD(temperature)
    value = loss(tapped(*students), tapped(*teachers), NO_TARGET)
    expected = sum(slow(s, t, temperature) for s, t in zip(students, teachers, strict=True))
    assert value.item() == pytest.approx(expected, rel=1e-11)
    assert not list(loss.parameters())


def test_other_channels_go_through_a_trained_convolution():
    student, teacher, loss = draw(3, 2, 4, 3, seed=1), draw(3, 5, 4, 3, seed=2), CWD()
    value = loss(tapped(student), tapped(teacher), NO_TARGET)
    value.backward()
    (weight, bias) = loss.parameters()
    widened = torch.einsum("oi,bihw->bohw", weight[:, :, 0, 0], student) + bias[:, None, None]
    assert value.item() == pytest.approx(slow(widened.detach(), teacher, 4.0), rel=1e-11)
    assert weight.grad.any()


def test_channel_constants_do_not_matter_and_peaks_are_finite():
    maps = draw(2, 3, 4, 4)
    assert CWD()(tapped(maps + 5), tapped(maps), NO_TARGET).item() == pytest.approx(0, abs=1e-13)
    peak = torch.zeros(1, 1, 2, 2)
    peak[..., 0, 0] = 1e4
    assert CWD(0.1)(tapped(peak), tapped(peak.flip(-1)), NO_TARGET).isfinite()


def test_other_map_sizes_raise_input_error():
    with pytest.raises(InputError, match=r"one height and width.*\(2, 3, 4, 4\).*\(2, 3, 2, 2\)"):
        CWD()(tapped(torch.ones(2, 3, 4, 4)), tapped(torch.ones(2, 3, 2, 2)), NO_TARGET)


def test_transposed_maps_raise_input_error():
    with pytest.raises(InputError, match="one height and width"):
        CWD()(tapped(torch.ones(2, 3, 4, 4)), tapped(torch.ones(2, 3, 2, 8)), NO_TARGET)
