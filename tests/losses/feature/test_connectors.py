"""Which convolution joins two maps, and what a connector computes."""

import pytest
import torch
from torch import nn

from kdlab.errors import InputError
from kdlab.losses.feature.connectors import Geometry, connector, geometry, widened


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [
        ((8, 8), (8, 8), Geometry((1, 1))),
        ((8, 6), (4, 3), Geometry((3, 3), stride=2)),
        ((4, 3), (8, 6), Geometry((4, 4), stride=2, transposed=True)),
        ((7, 7), (5, 6), Geometry((3, 2))),
        ((8, 4), (4, 4), Geometry((5, 1))),
        ((2, 2), (1, 1), Geometry((3, 3), stride=2)),
        ((3, 3), (8, 8), None),
        ((4, 8), (8, 4), None),
    ],
)
def test_the_convolution_follows_from_the_sizes(student, teacher, expected):
    maps = torch.rand(3, 2, *student), torch.rand(3, 5, *teacher)
    found = geometry(*(each.shape for each in maps))
    assert found == expected
    if found is not None:
        assert connector(2, 5, found)(maps[0]).shape == maps[1].shape


@pytest.mark.parametrize("transposed", [False, True])
def test_initial_values_are_those_of_torch(transposed):
    torch.manual_seed(3)
    built = connector(4, 6, Geometry((4, 4), 2, transposed=True) if transposed else Geometry())
    torch.manual_seed(3)
    expected = nn.ConvTranspose2d(4, 6, 4, stride=2, padding=1) if transposed else nn.Conv2d(4, 6, 1)
    assert torch.equal(built.conv.weight, expected.weight)
    assert torch.equal(built.conv.bias, expected.bias)


@pytest.mark.parametrize("relu", [True, False])
def test_value_is_convolution_normalization_relu(relu):
    student, built = torch.rand(4, 3, 6, 6).double(), connector(3, 5, Geometry((3, 3), 2), relu=relu).double()
    convolution = nn.Conv2d(3, 5, 3, stride=2, padding=1).double()
    convolution.load_state_dict(built.conv.state_dict())
    out = convolution(student)
    mean, variance = out.mean((0, 2, 3), keepdim=True), out.var((0, 2, 3), unbiased=False, keepdim=True)
    expected = (out - mean) / (variance + 1e-5).sqrt()
    assert torch.allclose(built(student), expected.clamp(min=0) if relu else expected, rtol=1e-10, atol=1e-12)


def test_one_value_a_channel_cannot_be_normalized_in_training():
    one, built = torch.rand(1, 3, 1, 1), connector(3, 4)
    with pytest.raises(InputError, match="more than one value per channel"):
        built(one)
    assert built.eval()(one).isfinite().all()


def test_only_other_widths_are_convolved():
    assert isinstance(widened(3, 3), nn.Identity)
    assert widened(3, 5)(torch.rand(2, 3, 4, 4)).shape == (2, 5, 4, 4)
