"""VGG networks: published sizes and keys, the computation against a functional reference, and the taps."""

import pytest
import torch
import torch.nn.functional as F

from kdlab import models
from kdlab.errors import InputError
from kdlab.outputs import observe
from tests.models import published
from tests.models.published import trained, unfilled
from tests.tiers import tiered

NETWORKS = {  # name: (100-class parameters, channels of each block's convolutions)
    "vgg8": (3_965_028, [[64], [128], [256], [512], [512]]),
    "vgg11": (9_277_284, [[64], [128], [256, 256], [512, 512], [512, 512]]),
    "vgg13": (9_462_180, [[64, 64], [128, 128], [256, 256], [512, 512], [512, 512]]),
    "vgg16": (14_774_436, [[64, 64], [128, 128], [256, 256, 256], [512, 512, 512], [512, 512, 512]]),
    "vgg19": (20_086_692, [[64, 64], [128, 128], [256] * 4, [512] * 4, [512] * 4]),
}
TAPS = [f"{kind}{stage}" for kind in ("block", "relu") for stage in range(5)]


def published_shapes(blocks, classes, channels):
    shapes = published.linear("classifier", 512, classes)
    for stage, widths in enumerate(blocks):
        for i, width in enumerate(widths):
            at = f"block{stage}.{3 * i}"
            shapes |= published.conv(at, channels, width, 3) | {f"{at}.bias": (width,)}
            shapes |= published.norm(f"block{stage}.{3 * i + 1}", width)
            channels = width
    return shapes


def reference(state, x):
    """The published computation from the weights alone: logits, and each block before its last ReLU."""
    height, sums = x.shape[2], []
    for stage in range(5):
        i = 0
        while f"block{stage}.{i}.weight" in state:
            x = published.normalize(state, published.convolve(state, x.clamp(min=0) if i else x, f"block{stage}.{i}"),
                                    f"block{stage}.{i + 1}")  # fmt: skip
            i += 3
        sums.append(x)
        x = x.clamp(min=0)
        if stage < 3 or (stage == 3 and height == 64):
            x = F.max_pool2d(x, 2)
    return F.linear(x.mean(dim=(2, 3)), state["classifier.weight"], state["classifier.bias"]), sums


@pytest.mark.parametrize("name", NETWORKS)
def test_sizes_and_keys_are_the_published_ones(name):
    parameters, blocks = NETWORKS[name]
    network = unfilled(name)
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert published.shapes_of(network) == published_shapes(blocks, 100, 3)
    assert published.shapes_of(unfilled(name, 7, 1)) == published_shapes(blocks, 7, 1)


@pytest.mark.parametrize(
    ("name", "channels", "size", "sides"),
    tiered(
        [
            *((name, 3, 32, (32, 16, 8, 4, 4)) for name in NETWORKS),
            ("vgg8", 1, 8, (8, 4, 2, 1, 1)),
            ("vgg8", 1, 28, (28, 14, 7, 3, 3)),
            ("vgg8", 3, 48, (48, 24, 12, 6, 6)),
            ("vgg13", 3, 64, (64, 32, 16, 8, 4)),
        ],
        [("vgg8", 3, 32, (32, 16, 8, 4, 4)), ("vgg8", 1, 28, (28, 14, 7, 3, 3))],
    ),
)
def test_logits_and_taps_equal_a_functional_reference(name, channels, size, sides):
    network = trained(getattr(models, name)(10, channels))
    x = torch.randn(2, channels, size, size, dtype=torch.float64)
    with torch.no_grad():
        seen = observe(network, x, TAPS)
        logits, sums = reference(network.state_dict(), x)
    torch.testing.assert_close(seen.logits, logits)
    assert not torch.allclose(*logits)
    widths = (64, 128, 256, 512, 512)
    for before, after, expected, width, side in zip(seen.layers[:5], seen.layers[5:], sums, widths, sides, strict=True):
        assert after.shape == (2, width, side, side)
        torch.testing.assert_close(before, expected)
        assert (before < 0).any()
        assert torch.equal(after, before.clamp(min=0))
    torch.testing.assert_close(seen.embedding, seen.layers[9].mean(dim=(2, 3)))


def test_every_parameter_has_the_references_gradient():
    network = trained(models.vgg8(10))
    published.assert_gradients_are_those_of(reference, network, torch.randn(2, 3, 16, 16, dtype=torch.float64))


def test_taps_run_once_and_keep_their_values():
    network = models.vgg11(10).eval()
    published.assert_every_layer_runs_once_and_keeps_its_value(network, torch.randn(2, 3, 64, 64), TAPS)


def test_it_starts_with_kaiming_fan_out_and_a_small_classifier():
    network = models.vgg8()
    for convolution in (network.block1[0], network.block3[0]):
        fan_out = convolution.out_channels * 9
        assert convolution.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.02)
        assert not convolution.bias.any()
    assert network.classifier.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert not network.classifier.bias.any()


@pytest.mark.parametrize("widths", [[[64]] * 4, [[64], [64], [], [64], [64]]])
def test_impossible_widths_are_named(widths):
    with pytest.raises(InputError, match="widths must be five lists of channels"):
        models.VGG(widths)
