"""CIFAR ResNets: published sizes and key names, the computation against a functional reference, and the taps."""

import pytest
import torch
import torch.nn.functional as F

from kdlab import models
from kdlab.errors import InputError
from kdlab.outputs import observe

PARAMETERS = {  # name: (100-class parameters, blocks per stage, widths)
    "resnet8": (83_892, 1, (16, 16, 32, 64)),
    "resnet14": (181_108, 2, (16, 16, 32, 64)),
    "resnet20": (278_324, 3, (16, 16, 32, 64)),
    "resnet32": (472_756, 5, (16, 16, 32, 64)),
    "resnet44": (667_188, 7, (16, 16, 32, 64)),
    "resnet56": (861_620, 9, (16, 16, 32, 64)),
    "resnet110": (1_736_564, 18, (16, 16, 32, 64)),
    "resnet8x4": (1_233_540, 1, (32, 64, 128, 256)),
    "resnet32x4": (7_433_860, 5, (32, 64, 128, 256)),
}
BN = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def published_keys(blocks, widths):
    keys = {"conv1.weight", "fc.weight", "fc.bias"} | {f"bn1.{each}" for each in BN}
    for stage in (1, 2, 3):
        for block in range(blocks):
            at = f"layer{stage}.{block}"
            keys |= {f"{at}.conv1.weight", f"{at}.conv2.weight"}
            keys |= {f"{at}.{bn}.{each}" for bn in ("bn1", "bn2") for each in BN}
        if stage > 1 or widths[0] != widths[1]:
            keys |= {f"layer{stage}.0.downsample.0.weight"} | {f"layer{stage}.0.downsample.1.{each}" for each in BN}
    return keys


def reference(state, x):
    """The same network from its weights alone, by functional calls."""

    def bn(x, at):
        return F.batch_norm(x, *(state[f"{at}.{each}"] for each in ("running_mean", "running_var", "weight", "bias")))

    x = bn(F.conv2d(x, state["conv1.weight"], padding=1), "bn1").clamp(min=0)
    sums = []
    for stage in (1, 2, 3):
        block = 0
        while f"layer{stage}.{block}.conv1.weight" in state:
            at, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            shortcut = x
            if f"{at}.downsample.0.weight" in state:
                shortcut = bn(F.conv2d(x, state[f"{at}.downsample.0.weight"], stride=stride), f"{at}.downsample.1")
            x = bn(F.conv2d(x, state[f"{at}.conv1.weight"], stride=stride, padding=1), f"{at}.bn1").clamp(min=0)
            x = bn(F.conv2d(x, state[f"{at}.conv2.weight"], padding=1), f"{at}.bn2") + shortcut
            total, x = x, x.clamp(min=0)
            block += 1
        sums.append(total)
    return F.linear(x.mean(dim=(2, 3)), state["fc.weight"], state["fc.bias"]), sums


def trained(network):
    """The network with BatchNorm statistics and scales that are not those of initialization."""
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for value in (module.weight, module.bias, module.running_mean):
                torch.nn.init.normal_(value, 0.5, 0.5)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
    return network.eval()


@pytest.mark.parametrize("name", PARAMETERS)
def test_sizes_and_key_names_are_the_published_ones(name):
    parameters, blocks, widths = PARAMETERS[name]
    network = getattr(models, name)()
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert set(network.state_dict()) == published_keys(blocks, widths)
    assert network.fc.out_features == 100


@pytest.mark.parametrize("name", ["resnet20", "resnet8x4"])
@pytest.mark.parametrize(("channels", "size"), [(1, 8), (1, 28), (3, 32), (3, 64)])
def test_logits_and_taps_equal_a_reference_at_any_image_size(name, channels, size):
    network = trained(getattr(models, name)(10, channels))
    last = PARAMETERS[name][1] - 1
    x = torch.randn(2, channels, size, size)
    stages = ["layer1", "layer2", "layer3"]
    with torch.no_grad():
        seen = observe(network, x, stages + [f"{stage}.{last}.preact" for stage in stages])
        logits, sums = reference(network.state_dict(), x)
    torch.testing.assert_close(seen.logits, logits, rtol=1e-4, atol=1e-4)
    for after, before, expected in zip(seen.layers[:3], seen.layers[3:], sums, strict=True):
        torch.testing.assert_close(before, expected, rtol=1e-4, atol=1e-4)
        assert (before < 0).any()
        assert torch.equal(after, before.clamp(min=0))
    assert seen.layers[2].shape[2] == -(-size // 4)
    torch.testing.assert_close(seen.embedding, seen.layers[2].mean(dim=(2, 3)), rtol=1e-4, atol=1e-4)


def test_convolutions_start_with_kaiming_fan_out():
    network = models.resnet8x4()
    for convolution in (network.conv1, network.layer2[0].conv1, network.layer3[0].downsample[0]):
        fan_out = convolution.out_channels * convolution.kernel_size[0] ** 2
        assert convolution.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.1)


def test_every_parameter_learns_through_tapped_values():
    network = models.resnet8(10)
    seen = observe(network, torch.randn(4, 3, 16, 16), ["relu", "layer2.0.relu1", "layer2.0.preact", "layer3"])
    (seen.logits.sum() + sum(layer.square().sum() for layer in seen.layers)).backward()
    assert all(p.grad is not None for p in network.parameters())


def test_nothing_overwrites_a_tapped_value():
    network, kept = models.resnet8(10).eval(), []
    network.layer2[0].preact.register_forward_hook(lambda module, args, output: kept.extend([output, output.clone()]))
    network(torch.randn(2, 3, 16, 16))
    assert (kept[0] < 0).any()
    assert torch.equal(*kept)


@pytest.mark.parametrize(
    ("depth", "widths", "message"), [(21, [16] * 4, "6n\\+2 .* not 21"), (20, [16] * 3, "four widths .* not 3")]
)
def test_impossible_shapes_are_named(depth, widths, message):
    with pytest.raises(InputError, match=message):
        models.ResNet(depth, widths)
