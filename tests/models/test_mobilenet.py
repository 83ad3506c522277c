"""MobileNets: published sizes and keys, the computation against a functional reference, and the taps."""

import pytest
import torch
import torch.nn.functional as F

from kdlab import models
from kdlab.errors import InputError
from kdlab.outputs import observe
from tests.models import published
from tests.models.published import trained, unfilled

GROUPS = [(1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
PAIRS = [(32, 64, 1), (64, 128, 2), (128, 128, 1), (128, 256, 2), (256, 256, 1), (256, 512, 2)]
PAIRS += [(512, 512, 1)] * 5 + [(512, 1024, 2), (1024, 1024, 1)]
HALF_TAPS = ["conv1", "blocks.1", "blocks.2", "blocks.4", "blocks.6", "conv2"]
FIRST_TAPS = ["model.0", "model.3", "model.5", "model.11", "model.13"]


def half_shapes(classes, channels):
    shapes = published.conv("conv1.0", channels, 16, 3) | published.norm("conv1.1", 16)
    before = 16
    for group, (expansion, width, count, _) in enumerate(GROUPS):
        for block in range(count):
            at, wide, after = f"blocks.{group}.{block}.conv", before * expansion, width // 2
            shapes |= published.conv(f"{at}.0", before, wide, 1) | published.norm(f"{at}.1", wide)
            shapes |= published.conv(f"{at}.3", wide, wide, 3, groups=wide) | published.norm(f"{at}.4", wide)
            shapes |= published.conv(f"{at}.6", wide, after, 1) | published.norm(f"{at}.7", after)
            before = after
    shapes |= published.conv("conv2.0", 160, 1280, 1) | published.norm("conv2.1", 1280)
    return shapes | published.linear("classifier.0", 1280, classes)


def first_shapes(classes, channels):
    shapes = published.conv("model.0.0", channels, 32, 3) | published.norm("model.0.1", 32)
    for i, (before, after, _) in enumerate(PAIRS, 1):
        at = f"model.{i}"
        shapes |= published.conv(f"{at}.0", before, before, 3, groups=before) | published.norm(f"{at}.1", before)
        shapes |= published.conv(f"{at}.3", before, after, 1) | published.norm(f"{at}.4", after)
    return shapes | published.linear("fc", 1024, classes)


def half_reference(state, x):
    """The published computation from the weights alone: logits, and what RepDistiller compares."""

    def both(x, at, i, stride=1, groups=1):
        x = published.convolve(state, x, f"{at}.{i}", stride, groups)
        return published.normalize(state, x, f"{at}.{i + 1}")

    x = both(x, "conv1", 0, 2).clamp(min=0)
    taps = [x]
    for group, (_, _, count, first) in enumerate(GROUPS):
        for block in range(count):
            at, stride, entry = f"blocks.{group}.{block}.conv", first if block == 0 else 1, x
            x = both(x, at, 0).clamp(min=0)
            x = both(x, at, 3, stride, groups=x.shape[1]).clamp(min=0)
            x = both(x, at, 6)
            if stride == 1 and entry.shape == x.shape:
                x = x + entry
        if group in (1, 2, 4, 6):
            taps.append(x)
    x = both(x, "conv2", 0).clamp(min=0)
    taps.append(x)
    x = F.avg_pool2d(x, 2).flatten(1) if x.shape[2] == 2 else x.mean(dim=(2, 3))
    return F.linear(x, state["classifier.0.weight"], state["classifier.0.bias"]), taps


def first_reference(state, x):
    """The published computation from the weights alone: logits, and the values before a pair's last ReLU."""
    x = published.normalize(state, published.convolve(state, x, "model.0.0", 2), "model.0.1")
    before = [x]
    for i, (channels, _, stride) in enumerate(PAIRS, 1):
        x = published.convolve(state, x.clamp(min=0), f"model.{i}.0", stride, groups=channels)
        x = published.normalize(state, x, f"model.{i}.1").clamp(min=0)
        x = published.normalize(state, published.convolve(state, x, f"model.{i}.3"), f"model.{i}.4")
        if i in (3, 5, 11, 13):
            before.append(x)
    x = x.clamp(min=0)
    x = F.avg_pool2d(x, 7).flatten(1) if x.shape[2] == 7 else x.mean(dim=(2, 3))
    return F.linear(x, state["fc.weight"], state["fc.bias"]), before


@pytest.mark.parametrize(
    ("name", "parameters", "shapes", "classes"),
    [("mobilenet_v2_half", 812_836, half_shapes, 100), ("mobilenet_v1", 4_231_976, first_shapes, 1000)],
)
def test_sizes_and_keys_are_the_published_ones(name, parameters, shapes, classes):
    network = unfilled(name)
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert published.shapes_of(network) == shapes(classes, 3)
    assert published.shapes_of(unfilled(name, 7, 1)) == shapes(7, 1)


@pytest.mark.parametrize(
    ("channels", "size", "sides"),
    [
        (1, 8, (4, 4, 2, 1, 1, 1)),
        (1, 28, (14, 14, 7, 4, 2, 2)),
        (3, 32, (16, 16, 8, 4, 2, 2)),
        (3, 64, (32, 32, 16, 8, 4, 4)),
    ],
)
def test_half_wide_v2_equals_a_functional_reference(channels, size, sides):
    network = trained(models.mobilenet_v2_half(10, channels))
    x = torch.randn(2, channels, size, size, dtype=torch.float64)
    with torch.no_grad():
        seen = observe(network, x, HALF_TAPS)
        logits, taps = half_reference(network.state_dict(), x)
    torch.testing.assert_close(seen.logits, logits)
    assert not torch.allclose(*logits)
    for i, (layer, expected, width) in enumerate(zip(seen.layers, taps, (16, 12, 16, 48, 160, 1280), strict=True)):
        assert layer.shape == (2, width, sides[i], sides[i])
        torch.testing.assert_close(layer, expected)
        assert (layer < 0).any() == (0 < i < 5)  # the groups have no ReLU at their end
    torch.testing.assert_close(seen.embedding, seen.layers[5].mean(dim=(2, 3)))


@pytest.mark.parametrize(
    ("channels", "size", "sides"),
    [(1, 28, (14, 7, 4, 2, 1)), (3, 64, (32, 16, 8, 4, 2)), (3, 224, (112, 56, 28, 14, 7))],
)
def test_v1_equals_a_functional_reference(channels, size, sides):
    network = trained(models.mobilenet_v1(10, channels))
    x = torch.randn(2, channels, size, size, dtype=torch.float64)
    with torch.no_grad():
        seen = observe(network, x, [*FIRST_TAPS, "model.0.1", *[f"{name}.4" for name in FIRST_TAPS[1:]]])
        logits, sums = first_reference(network.state_dict(), x)
    torch.testing.assert_close(seen.logits, logits)
    assert not torch.allclose(*logits)
    widths = (32, 128, 256, 512, 1024)
    for after, before, expected, width, side in zip(seen.layers[:5], seen.layers[5:], sums, widths, sides, strict=True):
        assert after.shape == (2, width, side, side)
        torch.testing.assert_close(before, expected)
        assert (before < 0).any()
        assert torch.equal(after, before.clamp(min=0))
    torch.testing.assert_close(seen.embedding, seen.layers[4].mean(dim=(2, 3)))


@pytest.mark.full
@pytest.mark.parametrize(
    ("name", "reference"), [("mobilenet_v2_half", half_reference), ("mobilenet_v1", first_reference)]
)
def test_every_parameter_has_the_references_gradient(name, reference):
    network = trained(getattr(models, name)(10))
    published.assert_gradients_are_those_of(reference, network, torch.randn(2, 3, 32, 32, dtype=torch.float64))


@pytest.mark.parametrize(("name", "taps"), [("mobilenet_v2_half", HALF_TAPS), ("mobilenet_v1", FIRST_TAPS)])
def test_taps_run_once_and_keep_their_values(name, taps):
    network = getattr(models, name)(10).eval()
    published.assert_every_layer_runs_once_and_keeps_its_value(network, torch.randn(2, 3, 32, 32), taps)


def test_v2_starts_with_kaiming_fan_out_and_a_small_classifier():
    network = models.mobilenet_v2_half()
    for convolution in (network.conv2[0], network.blocks[5][1].conv[0], network.blocks[6][0].conv[3]):
        fan_out = convolution.out_channels * convolution.kernel_size[0] ** 2
        assert convolution.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05)
    assert network.classifier[0].weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert not network.classifier[0].bias.any()


def test_v1_starts_as_pytorch_does():
    network = models.mobilenet_v1(10)
    for weight, fan_in in ((network.model[12][3].weight, 512), (network.model[13][0].weight, 9)):
        assert weight.abs().max().item() == pytest.approx(fan_in**-0.5, rel=0.01)
        assert weight.std().item() == pytest.approx((3 * fan_in) ** -0.5, rel=0.02)


def test_the_last_convolution_grows_with_widths_above_one():
    assert models.MobileNetV2(6, 1.0).conv2[0].out_channels == 1280
    assert models.MobileNetV2(6, 1.5).conv2[0].out_channels == 1920


@pytest.mark.parametrize(("expansion", "width"), [(0, 0.5), (6, 0.05)])
def test_impossible_sizes_are_named(expansion, width):
    with pytest.raises(InputError, match="expansion must be at least 1 and width at least 1/16"):
        models.MobileNetV2(expansion, width)
