"""Networks that compute as if in int8, for training that knows of its quantization."""

from __future__ import annotations

import copy
from typing import cast

import torch
from torch import Tensor, nn

from kdlab.errors import InputError
from kdlab.models.weights import load_weights

RATE = 0.01
"""Share of a new batch in the moving average of an input's range."""
WEIGHT, INPUT = 127, 255
"""Steps of a weight on each side of 0, and of an input from its smallest to its largest value."""


class _FakeQuantized:
    """Rounds a layer's input and weight to int8 in the forward pass; gradients pass as if they were not rounded."""

    weight: Tensor
    input_range: Tensor
    training: bool

    def rounded_weight(self) -> Tensor:
        """Return the weight on a symmetric grid for each output channel, (-127 ... 127) times its scale."""
        weight = self.weight
        scale = weight.detach().flatten(1).abs().amax(1).clamp_min(1e-12).float() / WEIGHT
        zero = torch.zeros_like(scale, dtype=torch.int32)
        return torch.fake_quantize_per_channel_affine(weight.float(), scale, zero, 0, -WEIGHT, WEIGHT)

    def rounded_input(self, inputs: Tensor) -> Tensor:
        """Return the input on a grid of 256 values over its range, a moving average of the ranges of the batches."""
        inputs = inputs.float()
        seen = self.input_range.any()
        if self.training:
            low, high = inputs.detach().amin(), inputs.detach().amax()  # on a CPU quicker than torch.aminmax
            batch = torch.stack([low.clamp_max(0), high.clamp_min(0)])  # the grid has a 0, for padding
            self.input_range.copy_(torch.where(seen, self.input_range.lerp(batch, RATE), batch))
            seen = torch.ones_like(seen)
        low, high = self.input_range.float().unbind()
        scale = ((high - low) / INPUT).clamp_min(1e-12)
        zero = (-128 - low / scale).round().clamp(-128, 127).to(torch.int32)
        rounded = torch.fake_quantize_per_tensor_affine(inputs, scale, zero, -128, 127)
        return torch.where(seen, rounded, inputs)


class FakeQuantizedConv2d(_FakeQuantized, nn.Conv2d):
    """A convolution in simulated int8; see :func:`fake_quantized`."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the convolution of the rounded input with the rounded weight."""
        convolved: Tensor = self._conv_forward(self.rounded_input(inputs), self.rounded_weight(), self.bias)
        return convolved


class FakeQuantizedLinear(_FakeQuantized, nn.Linear):
    """A linear layer in simulated int8; see :func:`fake_quantized`."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the product of the rounded input with the rounded weight."""
        return nn.functional.linear(self.rounded_input(inputs), self.rounded_weight(), self.bias)


KINDS: dict[type[nn.Module], type[nn.Module]] = {nn.Conv2d: FakeQuantizedConv2d, nn.Linear: FakeQuantizedLinear}


def fake_quantized(network: nn.Module, weights: str | None = None) -> nn.Module:
    r"""Return a network whose convolutions and linear layers compute as if in int8: quantization-aware training.

    Inputs and weights of each such layer are rounded to the values that an int8 file has, so that training, by any
    loss and any teacher, finds weights that stand the rounding. Layers keep their names, so feature losses tap them as
    ever. ``kdlab export --int8`` writes the int8 file. Weights are symmetric for each output channel, which folding
    BatchNorm into them does not change; inputs have one range, an exponential moving average:

    .. math:: \hat w = s \cdot \mathrm{clip}(\lfloor w / s \rceil, -127, 127), \quad s = \max |w| / 127

    with the gradient of the identity inside the range (straight-through estimator).

    Papers: B. Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
    Inference", CVPR 2018, arXiv 1712.05877; with a teacher: A. Mishra, D. Marr, "Apprentice", ICLR 2018, arXiv
    1711.05852.

    Args:
        network: a trained network, as a rule; it is changed in place.
        weights: a weights file of such a network, with its ranges.

    Raises:
        InputError: it has no convolution and no linear layer.
    """
    layers = [module for module in network.modules() if type(module) in KINDS]
    if not layers:
        raise InputError(f"{type(network).__name__} has no Conv2d and no Linear layer to quantize.")
    for layer in layers:
        layer.__class__ = KINDS[type(layer)]
        layer.register_buffer("input_range", torch.zeros(2, device=cast(Tensor, layer.weight).device))
    return network if weights is None else load_weights(network, weights)


def without_fake_quantization(network: nn.Module) -> nn.Module:
    """Return a network that computes in floating point: a copy, or itself where nothing in it is fake-quantized."""
    if not any(isinstance(module, _FakeQuantized) for module in network.modules()):
        return network
    network = copy.deepcopy(network)
    plain = {quantized: kind for kind, quantized in KINDS.items()}
    for layer in network.modules():
        if type(layer) in plain:
            layer.__class__ = plain[type(layer)]
            del layer.input_range
    return network
