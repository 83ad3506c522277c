"""ResNet-18 and ResNet-50 for small images: published sizes and keys, a functional reference, and the taps."""

import pytest
import torch
import torch.nn.functional as F

from kdlab import models
from kdlab.errors import InputError
from kdlab.outputs import observe
from tests.models import published
from tests.models.published import trained, unfilled

NETWORKS = {  # name: (100-class parameters, blocks per stage, channels after a block by its width)
    "cifar_resnet18": (11_220_132, (2, 2, 2, 2), 1),
    "cifar_resnet50": (23_705_252, (3, 4, 6, 3), 4),
}
STAGES = ["layer1", "layer2", "layer3", "layer4"]


def published_shapes(blocks, factor, classes, channels):
    shapes = published.conv("conv1", channels, 64, 3) | published.norm("bn1", 64)
    shapes |= published.linear("linear", 512 * factor, classes)
    before = 64
    for stage, (count, width) in enumerate(zip(blocks, (64, 128, 256, 512), strict=True), 1):
        for block in range(count):
            at, after = f"layer{stage}.{block}", width * factor
            kernels = (1, 3, 1) if factor == 4 else (3, 3)
            sizes = [before, *[width] * (len(kernels) - 1), after]
            for i, kernel in enumerate(kernels):
                shapes |= published.conv(f"{at}.conv{i + 1}", sizes[i], sizes[i + 1], kernel)
                shapes |= published.norm(f"{at}.bn{i + 1}", sizes[i + 1])
            if block == 0 and (stage > 1 or factor == 4):
                shapes |= published.conv(f"{at}.shortcut.0", before, after, 1)
                shapes |= published.norm(f"{at}.shortcut.1", after)
            before = after
    return shapes


def reference(state, x):
    """The published computation from the weights alone: logits, and each stage before its last ReLU."""

    def both(x, at, i, stride=1, kind="conv"):
        names = (f"{at}.shortcut.0", f"{at}.shortcut.1") if kind == "shortcut" else (f"{at}conv{i}", f"{at}bn{i}")
        return published.normalize(state, published.convolve(state, x, names[0], stride), names[1])

    x, sums = both(x, "", 1).clamp(min=0), []
    for stage in (1, 2, 3, 4):
        block = 0
        while f"layer{stage}.{block}.conv1.weight" in state:
            at, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            shortcut = both(x, at, 0, stride, "shortcut") if f"{at}.shortcut.0.weight" in state else x
            if f"{at}.conv3.weight" in state:
                x = both(x, f"{at}.", 1).clamp(min=0)
                x = both(x, f"{at}.", 2, stride).clamp(min=0)
                x = both(x, f"{at}.", 3) + shortcut
            else:
                x = both(x, f"{at}.", 1, stride).clamp(min=0)
                x = both(x, f"{at}.", 2) + shortcut
            total, x = x, x.clamp(min=0)
            block += 1
        sums.append(total)
    return F.linear(x.mean(dim=(2, 3)), state["linear.weight"], state["linear.bias"]), sums


@pytest.mark.parametrize("name", NETWORKS)
def test_sizes_and_keys_are_the_published_ones(name):
    parameters, blocks, factor = NETWORKS[name]
    network = unfilled(name)
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert published.shapes_of(network) == published_shapes(blocks, factor, 100, 3)
    assert published.shapes_of(unfilled(name, 7, 1)) == published_shapes(blocks, factor, 7, 1)


def test_the_tiny_imagenet_teacher_has_the_published_size():
    assert sum(p.numel() for p in unfilled("cifar_resnet18", 200).parameters()) == 11_271_432


@pytest.mark.full
@pytest.mark.parametrize(
    ("name", "channels", "size"),
    [("cifar_resnet18", 1, 8), ("cifar_resnet18", 1, 28), ("cifar_resnet18", 3, 32), ("cifar_resnet50", 3, 32)],
)
def test_logits_and_taps_equal_a_functional_reference(name, channels, size):
    _, blocks, factor = NETWORKS[name]
    network = trained(getattr(models, name)(10, channels))
    x = torch.randn(2, channels, size, size, dtype=torch.float64)
    before = [f"{stage}.{count - 1}.preact" for stage, count in zip(STAGES, blocks, strict=True)]
    with torch.no_grad():
        seen = observe(network, x, ["relu", *STAGES, *before])
        logits, sums = reference(network.state_dict(), x)
    torch.testing.assert_close(seen.logits, logits)
    assert not torch.allclose(*logits)
    assert seen.layers[0].shape == (2, 64, size, size)
    for i, (after, total, expected) in enumerate(zip(seen.layers[1:5], seen.layers[5:], sums, strict=True)):
        side = -(-size // 2**i)
        assert after.shape == (2, 64 * factor * 2**i, side, side)
        torch.testing.assert_close(total, expected)
        assert (total < 0).any()
        assert torch.equal(after, total.clamp(min=0))
    torch.testing.assert_close(seen.embedding, seen.layers[4].mean(dim=(2, 3)))


@pytest.mark.parametrize("blocks_and_form", [((1, 1, 1, 1), True), ((1, 2, 1, 1), False)])
def test_every_parameter_has_the_references_gradient(blocks_and_form):
    network = trained(models.FourStageResNet(*blocks_and_form, num_classes=10))
    published.assert_gradients_are_those_of(reference, network, torch.randn(2, 3, 16, 16, dtype=torch.float64))


@pytest.mark.parametrize("bottleneck", [False, True])
def test_taps_run_once_and_keep_their_values(bottleneck):
    network = models.FourStageResNet((1, 1, 2, 1), bottleneck, 10).eval()
    published.assert_every_layer_runs_once_and_keeps_its_value(
        network, torch.randn(2, 3, 16, 16), ["relu", *STAGES, "layer1.0.preact", "layer3.1.preact"]
    )


def test_convolutions_start_with_kaiming_fan_out():
    network = models.FourStageResNet((1, 1, 1, 1), True)
    for convolution in (network.conv1, network.layer1[0].conv3, network.layer2[0].conv2, network.layer2[0].shortcut[0]):
        fan_out = convolution.out_channels * convolution.kernel_size[0] ** 2
        assert convolution.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05)


@pytest.mark.parametrize("blocks", [(2, 2, 2), (2, 2, 2, 0)])
def test_impossible_stages_are_named(blocks):
    with pytest.raises(InputError, match="blocks must be four numbers of at least 1"):
        models.FourStageResNet(blocks, False)
