"""NORM's student and its merged form for deployment."""

import copy
import pickle

import pytest
import torch
from torch import nn

from kdlab.errors import InputError
from kdlab.models import load_weights, normed, resnet8, save_weights
from kdlab.outputs import observe

IMAGES = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def student(**given: object) -> nn.Module:
    torch.manual_seed(0)
    return normed(resnet8(num_classes=5), "layer3", **({"width": 12, "copies": 3} | given))


def trained() -> nn.Module:
    """The student with running statistics and normalization weights that are not the initial ones."""
    network = student()
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.normal_(part.weight)
            nn.init.normal_(part.bias)
    for _ in range(3):
        network(torch.rand(8, 3, 16, 16))
    return network.eval()


def test_the_map_gets_a_linear_branch_that_can_be_tapped():
    network = student().eval()
    bare = resnet8(num_classes=5).eval()
    bare.load_state_dict(network.trunk.state_dict())
    features = observe(bare, IMAGES, ["layer3"]).layers[0]
    seen = observe(network, IMAGES, ["expand", "trunk.layer3"])
    assert seen.layers[0].shape == (3, 36, 4, 4)
    assert torch.allclose(seen.layers[0], network.expand(features), atol=1e-5)
    expected = features + network.back(network.expand(features))
    assert torch.allclose(seen.layers[1], expected, atol=1e-5)
    assert torch.allclose(seen.logits, bare.fc(expected.mean((2, 3))), atol=1e-5)


def test_the_networks_own_names_stay():
    names = set(student().state_dict())
    assert {f"trunk.{name}" for name in resnet8(num_classes=5).state_dict()} <= names
    assert {name.split(".")[0] for name in names} == {"trunk", "expand", "back"}


def test_everything_is_trained():
    network = student()
    network(IMAGES).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize("scale", [None, 2.5])
def test_merging_is_exact(scale):
    network = trained()
    network.logit_scale = scale
    short = network.merged()
    assert (short(IMAGES) - network(IMAGES)).abs().max() < 1e-5
    assert isinstance(short.expand, nn.Conv2d)
    assert short.expand.weight.shape == (64, 64, 1, 1)
    assert set(short.state_dict()) == {*(f"trunk.{name}" for name in network.trunk.state_dict())} | {
        "expand.weight",
        "expand.bias",
    }
    assert isinstance(network.expand, nn.Sequential)
    with pytest.raises(InputError, match="merged already"):
        short.merged()


def test_merging_in_training_gives_a_network_in_eval_mode():
    network = trained().train()
    short = network.merged()
    assert all(part.training for part in network.modules())
    assert not short.training
    assert not any(part.training for part in short.trunk.modules())
    assert (short(IMAGES) - network.eval()(IMAGES)).abs().max() < 1e-5


def test_merging_rounds_once():
    network = trained()
    exact = copy.deepcopy(network).double().merged().expand.state_dict()
    for name, value in network.merged().expand.state_dict().items():
        assert torch.equal(value, exact[name].float()), name


def test_copies_and_pickles_are_independent_and_the_same():
    network = trained()
    for twin in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert torch.equal(twin(IMAGES), network(IMAGES))
        before = network(IMAGES)
        with torch.no_grad():
            twin.back[1].weight.zero_()
        assert not torch.equal(twin(IMAGES), before)
        assert torch.equal(network(IMAGES), before)


def test_logits_are_normalized_on_request():
    plain, scaled = student().eval(), student(logit_scale=2.5).eval()
    logits = plain(IMAGES)
    centered = logits - logits.mean(1, keepdim=True)
    expected = 2.5 * centered / (logits.var(1, unbiased=False, keepdim=True) + 1e-7).sqrt()
    assert torch.allclose(scaled(IMAGES), expected, atol=1e-5)


@pytest.mark.full
def test_it_can_be_compiled():
    network = trained()
    compiled = torch.compile(copy.deepcopy(network), backend="eager")
    assert torch.allclose(compiled(IMAGES), network(IMAGES), atol=1e-5)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"width": 0}, "width"),
        ({"copies": 1.5}, "copies"),
        ({"logit_scale": 0.0}, "logit_scale must be a finite number above 0"),
        ({"logit_scale": float("inf")}, "logit_scale"),
    ],
)
def test_bad_arguments(given, words):
    with pytest.raises(InputError, match=words):
        student(**given)


def test_a_layer_that_is_not_the_last_map_is_named():
    with pytest.raises(InputError, match="has no layer 'layer4'"):
        normed(resnet8(), "layer4", 12)
    with pytest.raises(InputError, match=r"Layer 'layer1' gives \(3, 16, 16, 16\), but the last map \(B, 64, H, W\)"):
        normed(resnet8(), "layer1", 12)(IMAGES)


def test_its_weights_are_no_weights_of_the_bare_network(tmp_path) -> None:
    save_weights(normed(resnet8(num_classes=5), "layer3", 6), tmp_path / "normed.safetensors")
    with pytest.raises(InputError, match="fit under 'trunk'"):
        resnet8(num_classes=5, weights=str(tmp_path / "normed.safetensors"))
    bare = resnet8(num_classes=5)
    load_weights(bare, tmp_path / "normed.safetensors", prefix="trunk")
