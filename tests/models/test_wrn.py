"""Wide residual networks: published sizes and key names, the computation against a functional reference, the taps."""

import pytest
import torch
import torch.nn.functional as F

from kdlab import models
from kdlab.errors import InputError
from kdlab.outputs import observe

PARAMETERS = {  # name: (100-class parameters, blocks per stage, width)
    "wrn_16_1": (180_916, 2, 1),
    "wrn_16_2": (703_284, 2, 2),
    "wrn_40_1": (569_780, 6, 1),
    "wrn_40_2": (2_255_156, 6, 2),
}
BN = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def published_keys(blocks, width):
    keys = {"conv1.weight", "fc.weight", "fc.bias"} | {f"bn1.{each}" for each in BN}
    for stage in (1, 2, 3):
        for block in range(blocks):
            at = f"block{stage}.layer.{block}"
            keys |= {f"{at}.conv1.weight", f"{at}.conv2.weight"}
            keys |= {f"{at}.{bn}.{each}" for bn in ("bn1", "bn2") for each in BN}
        if stage > 1 or width > 1:
            keys.add(f"block{stage}.layer.0.convShortcut.weight")
    return keys


def reference(state, x):
    """The same network from its weights alone, by functional calls."""

    def bn(x, at):
        return F.batch_norm(x, *(state[f"{at}.{each}"] for each in ("running_mean", "running_var", "weight", "bias")))

    x = F.conv2d(x, state["conv1.weight"], padding=1)
    sums = []
    for stage in (1, 2, 3):
        block = 0
        while f"block{stage}.layer.{block}.conv1.weight" in state:
            at, stride = f"block{stage}.layer.{block}", 2 if stage > 1 and block == 0 else 1
            active = bn(x, f"{at}.bn1").clamp(min=0)
            if f"{at}.convShortcut.weight" in state:
                x = F.conv2d(active, state[f"{at}.convShortcut.weight"], stride=stride)
            out = F.conv2d(active, state[f"{at}.conv1.weight"], stride=stride, padding=1)
            x = x + F.conv2d(bn(out, f"{at}.bn2").clamp(min=0), state[f"{at}.conv2.weight"], padding=1)
            block += 1
        sums.append(x)
    x = bn(x, "bn1").clamp(min=0)
    return F.linear(x.mean(dim=(2, 3)), state["fc.weight"], state["fc.bias"]), sums


@pytest.mark.parametrize("name", PARAMETERS)
def test_sizes_and_key_names_are_the_published_ones(name):
    parameters, blocks, width = PARAMETERS[name]
    network = getattr(models, name)()
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert set(network.state_dict()) == published_keys(blocks, width)


@pytest.mark.parametrize("name", ["wrn_16_1", "wrn_16_2"])
@pytest.mark.parametrize(("channels", "size"), [(1, 8), (1, 28), (3, 32), (3, 64)])
def test_logits_and_taps_equal_a_reference_at_any_image_size(name, channels, size):
    network = getattr(models, name)(10, channels)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for value in (module.weight, module.bias, module.running_mean):
                torch.nn.init.normal_(value, 0.5, 0.5)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
    network.eval()
    x = torch.randn(2, channels, size, size)
    with torch.no_grad():
        seen = observe(network, x, ["block1", "block2", "block3", "block3.layer.0.bn1", "block3.layer.0.relu1", "bn1"])
        logits, sums = reference(network.state_dict(), x)
        torch.testing.assert_close(seen.logits, logits, rtol=1e-4, atol=1e-4)
        for tapped, expected in zip(seen.layers, sums, strict=False):
            torch.testing.assert_close(tapped, expected, rtol=1e-4, atol=1e-4)
        assert torch.equal(seen.layers[3], network.block3.layer[0].bn1(seen.layers[1]))
        assert torch.equal(seen.layers[4], seen.layers[3].clamp(min=0))
        assert torch.equal(seen.layers[5], network.bn1(seen.layers[2]))
        torch.testing.assert_close(seen.embedding, seen.layers[5].clamp(min=0).mean(dim=(2, 3)), rtol=1e-4, atol=1e-4)


def test_it_starts_with_kaiming_fan_out_and_a_zero_bias():
    network = models.wrn_16_2()
    for convolution in (network.block2.layer[0].conv1, network.block3.layer[0].convShortcut):
        fan_out = convolution.out_channels * convolution.kernel_size[0] ** 2
        assert convolution.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.1)
    assert not network.fc.bias.any()


def test_nothing_overwrites_a_tapped_value():
    network, kept = models.wrn_16_1(10).eval(), []
    network.block2.layer[0].bn1.register_forward_hook(
        lambda module, args, output: kept.extend([output, output.clone()])
    )
    network(torch.randn(2, 3, 16, 16))
    assert (kept[0] < 0).any()
    assert torch.equal(*kept)


def test_impossible_depths_are_named():
    with pytest.raises(InputError, match=r"6n\+4 .* not 20"):
        models.WideResNet(20, 2)
