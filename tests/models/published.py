"""Shared parts of tests of published networks: shapes by key, functional layers and checks of taps."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from kdlab import models


def unfilled(name, *arguments):
    """The network of a builder on the meta device: shapes without values, in no time."""
    with torch.device("meta"):
        return getattr(models, name)(*arguments)


def shapes_of(network):
    return {name: tuple(value.shape) for name, value in network.state_dict().items()}


def conv(at, before, after, kernel, groups=1):
    """The key of a convolution without bias."""
    return {f"{at}.weight": (after, before // groups, kernel, kernel)}


def norm(at, channels):
    """The five keys of a batch normalization."""
    names = ("weight", "bias", "running_mean", "running_var")
    return {f"{at}.{name}": (channels,) for name in names} | {f"{at}.num_batches_tracked": ()}


def linear(at, before, after):
    return {f"{at}.weight": (after, before), f"{at}.bias": (after,)}


def normalize(state, x, at):
    """Batch normalization with the running statistics."""
    weight, bias, mean, var = (
        state[f"{at}.{name}"].reshape(-1, 1, 1) for name in ("weight", "bias", "running_mean", "running_var")
    )
    return (x - mean) / (var + 1e-5).sqrt() * weight + bias


def convolve(state, x, at, stride=1, groups=1):
    weight = state[f"{at}.weight"]
    return F.conv2d(x, weight, state.get(f"{at}.bias"), stride, weight.shape[2] // 2, groups=groups)


def shuffle(x, groups):
    """Channel i of group g becomes channel i * groups + g."""
    size = x.shape[1] // groups
    return torch.stack([x[:, g * size + i] for i in range(size) for g in range(groups)], 1)


def trained(network):
    """The network in float64, eval mode, with random values through which the logits depend strongly on the images.

    With PyTorch's or Kaiming fan-out initialization depthwise convolutions are so small that biases dominate, and a
    wrong stride or shortcut far from the logits would hardly change them.
    """
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1, 0.3)
            nn.init.normal_(module.bias, 0, 0.3)
            nn.init.normal_(module.running_mean, 0, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
        elif isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.normal_(module.weight, 0, (2 / module.weight[0].numel()) ** 0.5)
            if module.bias is not None:
                nn.init.normal_(module.bias, 0, 0.3)
    return network.double().eval()


def assert_gradients_are_those_of(reference, network, x):
    """Assert that a loss of the logits gives every parameter the reference's gradient, and none is zero."""
    logits = network(x)
    weights = torch.randn_like(logits)
    parameters = dict(network.named_parameters())
    expected = torch.autograd.grad(
        (reference(network.state_dict(keep_vars=True), x)[0] * weights).sum(), parameters.values()
    )
    actual = torch.autograd.grad((logits * weights).sum(), parameters.values())
    for name, gradient, reference_gradient in zip(parameters, actual, expected, strict=True):
        torch.testing.assert_close(gradient, reference_gradient, msg=lambda text, name=name: f"{name}: {text}")
        assert gradient.any(), name


def assert_every_layer_runs_once_and_keeps_its_value(network, x, names):
    """Assert that no output is overwritten in place, no layer runs twice, and the layers ``names`` run."""
    seen = {}

    def keep(name):
        return lambda module, args, output: seen.setdefault(name, []).append((output, output._version))

    handles = [module.register_forward_hook(keep(name)) for name, module in network.named_modules()]
    network(x)
    for handle in handles:
        handle.remove()
    assert set(names) <= set(seen)
    for name, runs in seen.items():
        assert len(runs) == 1, f"{name} ran {len(runs)} times"
        assert runs[0][0]._version == runs[0][1], f"{name} was overwritten"
