"""Networks with a changed classifier: embedded, without_bias, and their shared behavior."""

import pytest
import torch
from torch import nn

from kdlab.errors import InputError
from kdlab.models import embedded, mlp, normed, projected, resnet8, save_weights, without_bias
from kdlab.models.surgery import head_of
from kdlab.outputs import observe
from tests.models.test_class_paths import build

IMAGES = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def small(classes: int = 5, **options: object) -> nn.Module:
    torch.manual_seed(0)
    return resnet8(num_classes=classes)


def test_the_embedding_gets_the_width_and_is_what_a_loss_reads():
    network = small()
    body = {name: value for name, value in network.state_dict().items() if not name.startswith("fc.")}
    changed = embedded(network, width=12)
    assert changed is network
    seen = observe(changed.eval(), IMAGES)
    assert seen.embedding.shape == (3, 12)
    assert seen.logits.shape == (3, 5)
    assert all(torch.equal(value, changed.state_dict()[name]) for name, value in body.items())
    parts = ["norm.weight", "norm.bias", "norm.running_mean", "norm.running_var", "norm.num_batches_tracked"]
    parts += ["embedding.weight", "embedding.bias", "classifier.weight", "classifier.bias"]
    assert changed.state_dict().keys() - body.keys() == {f"fc.{part}" for part in parts}


def test_the_embedding_is_normalized_dropped_and_projected():
    changed = embedded(small(), width=12, dropout=0.25, num_classes=7)
    pooled = torch.rand(6, 64)
    assert changed.fc.dropout.p == 0.25
    expected = (pooled - pooled.mean(0)) / (pooled.var(0, unbiased=False) + 1e-5).sqrt()
    changed.fc.dropout.p = 0.0
    expected = expected @ changed.fc.embedding.weight.T + changed.fc.embedding.bias
    expected = expected @ changed.fc.classifier.weight.T + changed.fc.classifier.bias
    assert torch.allclose(changed.fc(pooled), expected, atol=1e-5)
    assert expected.shape == (6, 7)


def test_the_bias_is_gone_and_the_rest_is_as_before():
    network = small().eval()
    bias, before = network.fc.bias.clone(), network(IMAGES)
    changed = without_bias(network)
    assert torch.allclose(changed(IMAGES), before - bias, atol=1e-6)
    assert "fc.bias" not in changed.state_dict()
    assert len(list(changed.parameters())) == len(list(small().parameters())) - 1


CHANGES = [
    (lambda net, **given: embedded(net, 12, **given), "embedded"),
    (lambda net, **given: without_bias(net, **given), "without_bias"),
    (lambda net, **given: projected(net, "layer3", 12, **given), "projected"),
    (lambda net, **given: normed(net, "layer3", 12, 2, **given), "normed"),
]


@pytest.mark.parametrize("change", [change for change, _ in CHANGES], ids=[name for _, name in CHANGES])
def test_a_changed_network_comes_back_from_its_own_file(change, tmp_path):
    first = change(small())
    first(IMAGES)  # moves the running statistics
    save_weights(first, tmp_path / "net.safetensors")
    torch.manual_seed(1)
    again = change(resnet8(num_classes=5), weights=str(tmp_path / "net.safetensors"))
    assert torch.equal(again.eval()(IMAGES), first.eval()(IMAGES))


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("embedded", [".width=12"]),
        ("without_bias", []),
        ("projected", [".layer=layer3", ".width=12"]),
        ("normed", [".layer=layer3", ".width=12", ".copies=2"]),
    ],
)
def test_they_work_by_class_path(name, arguments):
    inner = [".network=kdlab.models.resnet8", ".network.init_args.num_classes=5"]
    network = build(f"=kdlab.models.{name}", *arguments, *inner)
    assert network(IMAGES).shape == (3, 5)


def test_networks_without_a_classifier_are_refused():
    for bare in (nn.Sequential(nn.Conv2d(3, 5, 1), nn.Flatten()), nn.Linear(4, 2)):
        with pytest.raises(InputError, match="has no linear layer inside it that reads its embedding"):
            without_bias(bare)


def test_the_classifier_of_any_network_is_found_by_its_name():
    network = mlp(4, [8], 3)
    name, classifier = head_of(network)
    assert network.get_submodule(name) is classifier
    assert classifier.out_features == 3


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"width": 0}, "width must be a whole number of at least 1"),
        ({"width": 2.0}, "width"),
        ({"width": True}, "width"),
        ({"width": 4, "dropout": 1.0}, "dropout must be at least 0 and below 1"),
        ({"width": 4, "num_classes": -1}, "num_classes"),
    ],
)
def test_bad_numbers(given, words):
    with pytest.raises(InputError, match=words):
        embedded(small(), **given)
