"""ShuffleNets: published sizes and keys, the computation against a functional reference, and the taps."""

import pytest
import torch
import torch.nn.functional as F

from kdlab import models
from kdlab.errors import InputError
from kdlab.outputs import observe
from tests.models import published
from tests.models.published import convolve, normalize, shuffle, trained, unfilled
from tests.tiers import tiered

PARAMETERS = {"shuffle_v1": 949_258, "shuffle_v2": 1_355_528, "shuffle_v2_x1_5": 2_580_548}
WIDTHS = {
    "shuffle_v1": (24, 240, 480, 960),
    "shuffle_v2": (24, 116, 232, 464, 1024),
    "shuffle_v2_x1_5": (24, 176, 352, 704, 1024),
}
AFTER = ["relu", "layer1", "layer2", "layer3"]
BEFORE = ["layer1.3.preact", "layer2.7.preact", "layer3.3.preact"]
STEM = published.norm("bn1", 24)


def first_shapes(classes, channels):
    shapes = STEM | published.conv("conv1", channels, 24, 1) | published.linear("linear", 960, classes)
    before = 24
    for stage, (units, after) in enumerate(((4, 240), (8, 480), (4, 960)), 1):
        for unit in range(units):
            at, own = f"layer{stage}.{unit}", after if unit else after - before
            shapes |= published.conv(f"{at}.conv1", before, own // 4, 1, groups=1 if before == 24 else 3)
            shapes |= published.conv(f"{at}.conv2", own // 4, own // 4, 3, groups=own // 4)
            shapes |= published.conv(f"{at}.conv3", own // 4, own, 1, groups=3)
            for i, width in enumerate((own // 4, own // 4, own), 1):
                shapes |= published.norm(f"{at}.bn{i}", width)
            before = after
    return shapes


def second_shapes(widths, classes, channels):
    shapes = STEM | published.conv("conv1", channels, 24, 1) | published.linear("linear", 1024, classes)
    shapes |= published.conv("conv2", widths[3], 1024, 1) | published.norm("bn2", 1024)
    for stage, units in ((1, 3), (2, 7), (3, 3)):
        before, half, at = widths[stage - 1], widths[stage] // 2, f"layer{stage}.0"
        shapes |= published.conv(f"{at}.conv1", before, before, 3, groups=before)
        shapes |= published.conv(f"{at}.conv2", before, half, 1) | published.conv(f"{at}.conv3", before, half, 1)
        shapes |= published.conv(f"{at}.conv4", half, half, 3, groups=half)
        shapes |= published.conv(f"{at}.conv5", half, half, 1)
        for i, width in enumerate((before, half, half, half, half), 1):
            shapes |= published.norm(f"{at}.bn{i}", width)
        for unit in range(1, units + 1):
            at = f"layer{stage}.{unit}"
            shapes |= published.conv(f"{at}.conv1", half, half, 1) | published.conv(f"{at}.conv3", half, half, 1)
            shapes |= published.conv(f"{at}.conv2", half, half, 3, groups=half)
            for i in (1, 2, 3):
                shapes |= published.norm(f"{at}.bn{i}", half)
    return shapes


def shapes(name, classes, channels):
    return first_shapes(classes, channels) if name == "shuffle_v1" else second_shapes(WIDTHS[name], classes, channels)


def both(state, x, at, i, stride=1, groups=1):
    x = convolve(state, x, f"{at}conv{i}", stride, groups)
    return normalize(state, x, f"{at}bn{i}")


def pooled(x):
    return F.avg_pool2d(x, 4).flatten(1) if x.shape[2] == 4 else x.mean(dim=(2, 3))


def first_reference(state, x):
    """The published computation from the weights alone: logits, and each stage before and after its last ReLU."""
    x = both(state, x, "", 1).clamp(min=0)
    before, after = [], [x]
    for stage, units in ((1, 4), (2, 8), (3, 4)):
        for unit in range(units):
            at, stride, entry = f"layer{stage}.{unit}.", 1 if unit else 2, x
            groups = 1 if x.shape[1] == 24 else 3
            x = shuffle(both(state, x, at, 1, groups=groups).clamp(min=0), groups)
            x = both(state, x, at, 2, stride, groups=x.shape[1]).clamp(min=0)
            x = both(state, x, at, 3, groups=3)
            x = x + entry if unit else torch.cat([x, F.avg_pool2d(entry, 3, 2, 1)], 1)
            total, x = x, x.clamp(min=0)
        before.append(total)
        after.append(x)
    return F.linear(pooled(x), state["linear.weight"], state["linear.bias"]), before, after


def second_reference(state, x):
    """The same for V2; the identity half passes no ReLU, as published."""
    x = both(state, x, "", 1).clamp(min=0)
    before, after = [], [x]
    for stage, units in ((1, 3), (2, 7), (3, 3)):
        at, channels = f"layer{stage}.0.", x.shape[1]
        left = both(state, both(state, x, at, 1, 2, groups=channels), at, 2).clamp(min=0)
        right = both(state, x, at, 3).clamp(min=0)
        right = both(state, both(state, right, at, 4, 2, groups=right.shape[1]), at, 5).clamp(min=0)
        x = shuffle(torch.cat([left, right], 1), 2)
        for unit in range(1, units + 1):
            at, half = f"layer{stage}.{unit}.", x.shape[1] // 2
            kept, own = x[:, :half], both(state, x[:, half:], at, 1).clamp(min=0)
            own = both(state, both(state, own, at, 2, groups=half), at, 3)
            total, x = torch.cat([kept, own], 1), shuffle(torch.cat([kept, own.clamp(min=0)], 1), 2)
        before.append(total)
        after.append(x)
    x = both(state, x, "", 2).clamp(min=0)
    return F.linear(pooled(x), state["linear.weight"], state["linear.bias"]), before, [*after, x]


REFERENCES = dict.fromkeys(PARAMETERS, second_reference) | {"shuffle_v1": first_reference}


@pytest.mark.parametrize("name", PARAMETERS)
def test_sizes_and_keys_are_the_published_ones(name):
    network = unfilled(name)
    assert sum(p.numel() for p in network.parameters()) == PARAMETERS[name]
    assert published.shapes_of(network) == shapes(name, 100, 3)
    assert published.shapes_of(unfilled(name, 7, 1)) == shapes(name, 7, 1)


@pytest.mark.parametrize(
    ("name", "channels", "size"),
    [
        *tiered([(name, 3, 32) for name in PARAMETERS], [("shuffle_v1", 3, 32), ("shuffle_v2", 3, 32)]),
        *tiered(
            [(name, 1, size) for name in ("shuffle_v1", "shuffle_v2") for size in (8, 28, 64)], [("shuffle_v1", 1, 28)]
        ),
    ],
)
def test_logits_and_taps_equal_a_functional_reference(name, channels, size):
    network = trained(getattr(models, name)(10, channels))
    x = torch.randn(2, channels, size, size, dtype=torch.float64)
    after = AFTER if name == "shuffle_v1" else [*AFTER, "relu2"]
    with torch.no_grad():
        seen = observe(network, x, [*after, *BEFORE])
        logits, *expected = REFERENCES[name](network.state_dict(), x)
    torch.testing.assert_close(seen.logits, logits)
    assert not torch.allclose(*logits)
    for i, (layer, value) in enumerate(zip(seen.layers[: len(after)], expected[1], strict=True)):
        side = -(-size // 2 ** min(i, 3))
        assert layer.shape == (2, WIDTHS[name][i], side, side)
        torch.testing.assert_close(layer, value)
        assert (layer >= 0).all()
    for layer, value in zip(seen.layers[len(after) :], expected[0], strict=True):
        torch.testing.assert_close(layer, value)
        assert (layer < 0).any()
    torch.testing.assert_close(seen.embedding, seen.layers[len(after) - 1].mean(dim=(2, 3)))


@pytest.mark.full
@pytest.mark.parametrize("name", ["shuffle_v1", "shuffle_v2"])
def test_every_parameter_has_the_references_gradient(name):
    network = trained(getattr(models, name)(10))
    published.assert_gradients_are_those_of(REFERENCES[name], network, torch.randn(2, 3, 32, 32, dtype=torch.float64))


@pytest.mark.parametrize("name", ["shuffle_v1", "shuffle_v2"])
def test_taps_run_once_and_keep_their_values(name):
    network = getattr(models, name)(10).eval()
    published.assert_every_layer_runs_once_and_keeps_its_value(network, torch.randn(2, 3, 16, 16), [*AFTER, *BEFORE])


@pytest.mark.parametrize("name", ["shuffle_v1", "shuffle_v2"])
def test_it_starts_as_pytorch_does(name):
    network = getattr(models, name)()
    for weight in (network.layer3[1].conv3.weight, network.layer3[2].conv2.weight, network.linear.weight):
        fan_in = weight[0].numel()
        assert weight.abs().max().item() == pytest.approx(fan_in**-0.5, rel=0.01)
        assert weight.std().item() == pytest.approx((3 * fan_in) ** -0.5, rel=0.05)


@pytest.mark.parametrize("widths", [(116, 232, 464), (116, 233, 464, 1024)])
def test_impossible_widths_are_named(widths):
    with pytest.raises(InputError, match="widths must be four numbers"):
        models.ShuffleNetV2(widths)
