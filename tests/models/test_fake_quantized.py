"""fake_quantized: the int8 grid, its gradients, and the way back."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from kdlab import models
from kdlab.errors import InputError
from kdlab.models import fake_quantized, without_fake_quantization


def test_a_linear_layer_by_hand() -> None:
    """Weights on 127 steps of each row's largest; inputs from -1 to 4 on 255 steps, a 0 among them."""
    network = nn.Linear(2, 2, bias=False)
    network.weight.data = torch.tensor([[1.0, 0.503], [-2.0, 0.01]])
    layer = fake_quantized(network).train()
    inputs = torch.tensor([[4.0, -1.0], [1.0, 0.0]])
    scale = 5 / 255
    zero = round(-128 + 1 / scale)

    def grid(x: float) -> float:
        return (max(-128, min(127, round(x / scale) + zero)) - zero) * scale

    weight = torch.tensor([[1.0, round(0.503 * 127) / 127], [-2.0, round(0.01 / 2 * 127) * 2 / 127]])
    right = torch.tensor([[grid(x) for x in row] for row in inputs.tolist()]) @ weight.T
    torch.testing.assert_close(layer(inputs), right)
    assert layer.input_range.tolist() == [-1, 4]
    layer(torch.tensor([[104.0, 0.0]]))  # the range moves by 1 %, and 0 stays in it
    torch.testing.assert_close(layer.input_range, torch.tensor([-0.99, 5.0]))


def test_before_any_training_batch_inputs_are_unchanged() -> None:
    network = nn.Linear(2, 1)
    inputs = torch.tensor([[0.123456, 7.0]])
    layer = fake_quantized(copy.deepcopy(network)).eval()
    torch.testing.assert_close(layer(inputs), network(inputs), rtol=1e-2, atol=1e-2)
    assert layer.input_range.tolist() == [0, 0]


def test_gradients_pass_the_rounding() -> None:
    layer = fake_quantized(nn.Linear(3, 2)).train()
    inputs = torch.rand(4, 3, requires_grad=True)
    layer(inputs).sum().backward()
    torch.testing.assert_close(layer.weight.grad, inputs.detach().sum(0).expand(2, 3), rtol=0.02, atol=0.02)
    torch.testing.assert_close(inputs.grad, layer.weight.detach().sum(0).expand(4, 3), rtol=0.02, atol=0.02)


def test_names_stay_and_the_way_back_is_exact() -> None:
    network = models.resnet8(10).eval()
    inputs, before = torch.rand(2, 3, 32, 32), set(network.state_dict())
    right = network(inputs)
    quantized = fake_quantized(copy.deepcopy(network))
    added = set(quantized.state_dict()) - before
    assert {name.rpartition(".")[2] for name in added} == {"input_range"}
    assert len(added) == sum(isinstance(module, nn.Conv2d | nn.Linear) for module in network.modules())
    assert torch.equal(without_fake_quantization(quantized).eval()(inputs), right)
    assert set(without_fake_quantization(quantized).state_dict()) == before
    assert without_fake_quantization(network) is network
    assert copy.deepcopy(quantized)(inputs).shape == (2, 10)


def test_a_network_without_layers_to_quantize_is_refused() -> None:
    with pytest.raises(InputError, match="ReLU has no Conv2d and no Linear layer to quantize"):
        fake_quantized(nn.ReLU())
