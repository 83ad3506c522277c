"""SimKD's student."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kdlab.errors import InputError
from kdlab.models import projected, resnet8, wrn_16_1
from kdlab.outputs import observe

IMAGES = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def student(width: int = 12, **given: object) -> nn.Module:
    torch.manual_seed(0)
    return projected(resnet8(num_classes=5), "layer3", width, **given)


def test_it_is_network_projector_and_classifier():
    network = student()
    seen = observe(network, IMAGES, ["trunk.layer3", "projector"])
    features, projection = seen.layers
    assert features.shape == (3, 64, 4, 4)
    assert projection.shape == (3, 12, 4, 4)
    assert torch.allclose(projection, network.projector(features), atol=1e-6)
    pooled = projection.mean((2, 3))
    assert torch.allclose(seen.embedding, pooled, atol=1e-6)
    assert torch.allclose(seen.logits, F.linear(pooled, network.classifier.weight, network.classifier.bias), atol=1e-6)


def test_the_projector_is_the_papers():
    kinds = [nn.Conv2d, nn.BatchNorm2d, nn.ReLU] * 3
    projector = student(factor=3).projector
    assert [type(part) for part in projector] == kinds
    shapes = [tuple(projector[i].weight.shape) for i in (0, 3, 6)]
    assert shapes == [(4, 64, 1, 1), (4, 4, 3, 3), (12, 4, 1, 1)]
    assert all(projector[i].bias is None for i in (0, 3, 6))


def test_nothing_idle_is_trained_or_saved():
    network = student()
    network(IMAGES).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    assert not any(name.startswith("trunk.fc") for name in network.state_dict())
    assert {name.split(".")[0] for name in network.state_dict()} == {"trunk", "projector", "classifier"}


def test_copies_and_pickles_are_independent_and_the_same():
    network = student().eval()
    for twin in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert torch.equal(twin(IMAGES), network(IMAGES))
        with torch.no_grad():
            twin.trunk.conv1.weight.zero_()
        assert not torch.equal(twin(IMAGES), network(IMAGES))


def test_other_classes_and_other_networks():
    assert student(num_classes=7)(IMAGES).shape == (3, 7)
    wide = projected(wrn_16_1(num_classes=5), "relu", 12)
    assert wide(IMAGES).shape == (3, 5)


def test_a_failing_forward_leaves_nothing_behind():
    network = student()
    with pytest.raises(RuntimeError):
        network(torch.rand(3, 4, 16, 16))
    assert network(IMAGES).shape == (3, 5)
    assert not network._kept


@pytest.mark.full
def test_it_can_be_compiled():
    network = student().eval()
    compiled = torch.compile(copy.deepcopy(network), backend="eager")
    assert torch.allclose(compiled(IMAGES), network(IMAGES), atol=1e-5)


@pytest.mark.parametrize(
    ("layer", "given", "words"),
    [
        ("layer4", {}, "has no layer 'layer4'; the nearest names are .*'layer3'"),
        ("layer3", {"width": 0}, "width"),
        ("layer3", {"factor": 0}, "factor"),
        ("layer3", {"width": 2, "factor": 3}, "factor must not be above the width of 2, but is 3"),
        ("layer3", {"num_classes": 0}, "num_classes"),
        ("layer3", {"size": (4, 0)}, "size"),
    ],
)
def test_bad_arguments(layer, given, words):
    with pytest.raises(InputError, match=words):
        projected(resnet8(num_classes=5), layer, **({"width": 12} | given))


@pytest.mark.parametrize("layer", ["layer2", "fc"])
def test_a_layer_that_is_not_the_last_map_is_named(layer):
    with pytest.raises(InputError, match=rf"Layer '{layer}' gives .* but the last map \(B, 64, H, W\)"):
        projected(resnet8(num_classes=5), layer, 12)(IMAGES)
