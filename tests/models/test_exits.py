"""A network with exits: it is unchanged, and every exit is an adapter, a pooling and a classifier."""

import copy
import pickle

import pytest
import torch
import torchvision
from torch import nn

from kdlab.errors import InputError
from kdlab.models import WithExits, mlp, resnet8, resnet20, save_weights, wrn_16_1
from kdlab.outputs import Observer, heads_of, observe
from tests.models.test_branched import same_state, timm_resnet
from tests.models.test_class_paths import build
from tests.models.test_cutting import Overwriting

IMAGES = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
EXITS = ["exit1", "exit2"]


NETWORKS = {
    "resnet8": (lambda: resnet8(5), ["layer1", "layer2"], "layer3"),
    "resnet20": (lambda: resnet20(5), ["relu", "layer2.0"], "layer3"),
    "wrn": (lambda: wrn_16_1(5), ["block1", "block2"], "relu"),
    "torchvision": (lambda: torchvision.models.resnet18(num_classes=5), ["layer1", "layer3"], "layer4"),
    "timm": (timm_resnet, ["layer2", "layer3"], "layer4"),
    "mobilenet": (lambda: torchvision.models.mobilenet_v2(num_classes=5, dropout=0.0), ["features.3", "features.6"],
                  "features.17"),
}  # fmt: skip


def small(**given: object) -> WithExits:
    torch.manual_seed(0)
    return WithExits(resnet8(5), **given)


@pytest.mark.full
@pytest.mark.parametrize("adapter", ["bottleneck", "stages"])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_network_is_unchanged_and_exits_read_its_layers(name, adapter):
    make, layers, like = NETWORKS[name]
    torch.manual_seed(0)
    plain = make()
    network = WithExits(copy.deepcopy(plain), layers, like, adapter)
    assert same_state(network.network, plain)  # the probing forward left no trace
    assert all(module.training for module in network.modules())
    logits = network(IMAGES)
    assert list(logits) == ["logits", *EXITS]
    assert torch.equal(logits["logits"], plain(IMAGES))
    assert same_state(network.network, plain)
    sum(each.square().sum() for each in logits.values()).backward()
    assert not [key for key, parameter in network.named_parameters() if parameter.grad is None]
    network.eval()
    plain.eval()
    logits, outputs = network(IMAGES), Observer(network, ["feature", *layers])(IMAGES)
    seen = observe(plain, IMAGES, [like, *layers])
    assert torch.equal(logits["logits"], seen.logits)
    assert torch.equal(outputs.layers[0], seen.layers[0])
    for number, head in enumerate(EXITS):
        part, output = network.get_submodule(head), outputs.heads[head]
        feature = part.adapter(seen.layers[1 + number])
        assert feature.shape == seen.layers[0].shape
        assert torch.equal(output.layers[0], feature)
        assert torch.equal(output.layers[1 + number], seen.layers[1 + number])
        expected = feature.mean((2, 3)) @ part.classifier.weight.T + part.classifier.bias
        torch.testing.assert_close(logits[head], expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(output.embedding, feature.mean((2, 3)), rtol=1e-5, atol=1e-6)
    assert same_state(network.alone(), plain)
    assert torch.equal(network.alone()(IMAGES), seen.logits)
    for head in EXITS:
        early = network.alone(head)
        assert torch.equal(early(IMAGES), logits[head])
        assert sum(p.numel() for p in early.parameters()) < sum(p.numel() for p in network.parameters())


def test_the_released_bottleneck():
    adapter = small().exit1.adapter
    assert [type(part) for part in adapter] == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU] * 3
    kernels = [(tuple(adapter[i].weight.shape), adapter[i].stride, adapter[i].bias is None) for i in (0, 3, 6)]
    assert kernels == [
        ((16, 16, 1, 1), (1, 1), False),
        ((16, 16, 4, 4), (4, 4), False),
        ((64, 16, 1, 1), (1, 1), False),
    ]
    assert small().exit2.adapter[3].stride == (2, 2)


def test_stages_halve_the_map_and_double_the_channels():
    network = small(layers=["relu", "layer2", "layer3.0.bn1"], adapter="stages")
    shapes = [[tuple(b.conv1.weight.shape[:2]) + b.conv1.stride for b in network.get_submodule(f"exit{i}.adapter")]
              for i in (1, 2, 3)]  # fmt: skip
    assert shapes == [[(32, 16, 2, 2), (64, 32, 2, 2)], [(64, 32, 2, 2)], [(64, 64, 1, 1)]]


def test_odd_maps_are_for_stages():
    network = small(adapter="stages", image=(3, 30, 27))
    assert network(torch.rand(2, 3, 30, 27))["exit1"].shape == (2, 5)
    with pytest.raises(InputError, match=r"'bottleneck' cannot bring the map of layer 'layer2' from 15 x 14 to 8 x 7"):
        small(layers=["layer2"], image=(3, 30, 27))
    with pytest.raises(InputError, match="'stages' cannot bring the map of layer 'layer3' from 8 x 8 to 16 x 16"):
        small(layers=["layer3"], like="layer2", adapter="stages")


def test_the_convolutions_are_drawn_as_released():
    weight = small(adapter="bottleneck").exit1.adapter[3].weight
    assert abs(weight.std() / (2 / weight[:, 0].numel()) ** 0.5 - 1) < 0.1


def test_losses_name_layers_by_head():
    heads = heads_of(small())
    assert list(heads) == ["", *EXITS]
    names = ["feature", "exit.classifier", "exit.adapter.3", "layer1"]
    assert [heads["exit2"].layer(name) for name in names] == [
        "exit2.adapter",
        "exit2.classifier",
        "exit2.adapter.3",
        "network.layer1",
    ]
    assert [heads[""].layer(name) for name in ("feature", "layer1")] == ["network.layer3", "network.layer1"]
    network = small()
    assert network.get_classifier() is network.network.fc is heads_of(network)[""].classifier
    assert heads_of(network)["exit1"].classifier is network.exit1.classifier


def test_it_comes_back_from_its_file_before_any_forward(tmp_path):
    network = small()
    network(IMAGES)
    save_weights(network, tmp_path / "net.safetensors")
    torch.manual_seed(1)
    again = WithExits(resnet8(5), weights=str(tmp_path / "net.safetensors"))
    assert same_state(again, network)
    assert {key.split(".")[0] for key in again.state_dict()} == {"network", *EXITS}


def test_copies_and_pickles_are_independent_and_the_same():
    network = small().eval()
    for twin in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert all(torch.equal(twin(IMAGES)[head], value) for head, value in network(IMAGES).items())
        with torch.no_grad():
            twin.network.conv1.weight.zero_()
        assert not torch.equal(twin(IMAGES)["exit1"], network(IMAGES)["exit1"])


def test_no_hook_is_left_and_no_part_changes_its_mode():
    inner = resnet8(5)
    inner.bn1.eval()
    network = WithExits(inner)
    network(IMAGES)
    early = network.alone("exit1")
    early(IMAGES)
    for module in [*network.modules(), *early.modules()]:
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    assert not inner.bn1.training
    assert not early.network.bn1.training
    assert all(module.training for module in inner.modules() if module is not inner.bn1)
    assert int(inner.layer1[0].bn1.num_batches_tracked) == 1


def test_an_early_exit_neither_runs_nor_holds_what_comes_later():
    early = small().alone("exit1")
    keys = {key.split(".")[1] for key in early.state_dict() if key.startswith("network.")}
    assert keys == {"conv1", "bn1", "layer1"}
    assert early(IMAGES).shape == (4, 5)


def test_an_early_exit_keeps_a_late_registered_layer_that_runs():
    class Late(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.top = nn.Conv2d(4, 4, 3), nn.Conv2d(4, 8, 3, padding=1)
            self.stem, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(8, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(self.top(self.body(self.stem(x))).mean((2, 3)))

    network = WithExits(Late(), ["body"], "top", "bottleneck").eval()
    early = network.alone("exit1")
    assert torch.equal(early(IMAGES), network(IMAGES)["exit1"])
    assert not {"network.top.weight", "network.fc.weight"} & early.state_dict().keys()


def test_an_exit_reads_a_layer_as_it_left_it():
    class Maps(Overwriting):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 4, 3)
            self.top = nn.Sequential(nn.SiLU(inplace=True), nn.Conv2d(4, 4, 3, padding=1))
            self.fc = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))

    network = WithExits(Maps(), ["stem"], "top").eval()
    logits = network(IMAGES)
    assert torch.equal(logits["exit1"], network.exit1(network.network.stem(IMAGES)))
    sum(each.sum() for each in logits.values()).backward()


def test_it_takes_the_networks_precision():
    network = WithExits(resnet8(5).double())
    assert {each.dtype for each in network(IMAGES.double()).values()} == {torch.float64}


def test_it_works_by_class_path():
    network = build(
        "=kdlab.models.WithExits",
        ".layers=[layer1]",
        ".image=[1,16,16]",
        ".network=kdlab.models.resnet8",
        ".network.init_args.num_classes=5",
        ".network.init_args.in_channels=1",
    )
    assert [tuple(each.shape) for each in network(torch.rand(2, 1, 16, 16)).values()] == [(2, 5), (2, 5)]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"layers": ["layer4"]}, "has no layer 'layer4'; the nearest names are .*'layer3'"),
        ({"like": "layer5"}, "has no layer 'layer5'; the nearest names are .*'layer3'"),
        ({"layers": []}, "layers must be a list of one or more different layers"),
        ({"layers": "layer1"}, "layers must be a list"),
        ({"layers": ["layer1", "layer1"]}, "different layers"),
        ({"adapter": "bottle"}, "There is no adapter 'bottle'; the nearest names are .*'bottleneck'"),
        ({"image": (32, 32)}, "image must be channels, height and width, not"),
        ({"like": "fc"}, r"Layer 'fc' gives \(1, 5\), but an exit needs a map"),
        ({"layers": ["fc"]}, r"Layer 'fc' gives \(1, 5\), but an exit needs a map"),
    ],
)
def test_bad_arguments(given, words):
    with pytest.raises(InputError, match=words):
        small(**given)


def test_networks_without_maps_and_unknown_heads():
    with pytest.raises(InputError, match=r"Layer 'hidden.1' gives \(1, 4\), but an exit needs a map"):
        WithExits(mlp(3072, [4, 4], 5), ["hidden.0"], "hidden.1")
    with pytest.raises(InputError, match=r"There is no head 'exit3'; the nearest names are .*'exit2'"):
        small().alone("exit3")
