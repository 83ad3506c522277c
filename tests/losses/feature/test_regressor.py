"""Which convolution joins two maps, and how the regressor finds its sizes."""

import math

import pytest
import torch
from torch import nn

from kdlab.errors import InputError
from kdlab.losses.feature.regressor import ConvRegressor, Geometry, geometry


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
    assert geometry(*(each.shape for each in maps)) == expected
    regressor = ConvRegressor()
    if expected is None:
        with pytest.raises(InputError, match="No conv regressor"):
            regressor(*maps)
    else:
        assert regressor(*maps).shape == maps[1].shape


@pytest.mark.parametrize(("size", "make"), [(8, nn.Conv2d), (16, nn.ConvTranspose2d)])
def test_initial_values_are_those_of_torch(size, make):
    regressor = ConvRegressor()
    torch.manual_seed(3)
    regressor(torch.rand(2, 4, 8, 8), torch.rand(2, 6, size, size))
    torch.manual_seed(3)
    torch.rand(2, 4, 8, 8), torch.rand(2, 6, size, size)
    expected = make(4, 6, 1) if make is nn.Conv2d else make(4, 6, 4, stride=2, padding=1)
    assert torch.equal(regressor.weight, expected.weight)
    assert torch.equal(regressor.bias, expected.bias)


def test_value_is_convolution_normalisation_relu():
    student, teacher = torch.rand(4, 3, 6, 6).double(), torch.rand(4, 5, 3, 3).double()
    regressor = ConvRegressor().double()
    got = regressor(student, teacher)
    convolution = nn.Conv2d(3, 5, 3, stride=2, padding=1).double()
    convolution.load_state_dict({"weight": regressor.weight, "bias": regressor.bias})
    out = convolution(student)
    mean, variance = out.mean((0, 2, 3), keepdim=True), out.var((0, 2, 3), unbiased=False, keepdim=True)
    assert torch.allclose(got, ((out - mean) / (variance + 1e-5).sqrt()).clamp(min=0), rtol=1e-10, atol=1e-12)


def test_linear_is_a_matrix_with_small_initial_values():
    student, teacher = torch.rand(4, 3, 2, 2), torch.rand(4, 50, 2, 2)
    regressor = ConvRegressor(linear=True)
    got = regressor(student, teacher)
    assert dict(regressor.named_parameters()).keys() == {"weight"}
    assert 0.004 < regressor.weight.abs().max() <= 0.005
    assert torch.allclose(got, torch.einsum("oi,bihw->bohw", regressor.weight[:, :, 0, 0], student), atol=1e-7)
    with pytest.raises(InputError, match="No 1x1 regressor"):
        ConvRegressor(linear=True)(student, torch.rand(4, 3, 1, 1))


def test_other_maps_than_those_set_up_are_refused():
    regressor = ConvRegressor()
    regressor(torch.rand(2, 3, 8, 8), torch.rand(2, 4, 4, 4))
    regressor(torch.rand(5, 3, 12, 12), torch.rand(5, 4, 6, 6))  # another resolution, the same convolution
    with pytest.raises(InputError, match=r"holds weights \(4, 3, 3, 3\).*need \(4, 3, 1, 1\)"):
        regressor(torch.rand(2, 3, 8, 8), torch.rand(2, 4, 8, 8))


def test_one_value_a_channel_cannot_be_normalised_in_training():
    one, other = torch.rand(1, 3, 1, 1), torch.rand(1, 4, 1, 1)
    regressor = ConvRegressor()
    with pytest.raises(InputError, match="more than one value a channel"):
        regressor(one, other)
    assert regressor.eval()(one, other).isfinite().all()


def test_a_first_forward_in_inference_mode_leaves_it_trainable():
    regressor = ConvRegressor()
    maps = torch.rand(2, 3, 4, 4), torch.rand(2, 4, 4, 4)
    with torch.inference_mode():
        regressor(*maps)
    regressor(*maps).sum().backward()
    assert all(math.isfinite(parameter.grad.sum()) for parameter in regressor.parameters())
