"""A network with branches: each equals the plain network from the fork on, and the trunk runs once."""

import copy
import pickle

import pytest
import torch
import torchvision
from torch import nn

from kdlab.errors import InputError
from kdlab.models import Branched, mlp, resnet8, resnet20, save_weights, wrn_16_1
from kdlab.outputs import Observer, heads_of
from tests.models.test_class_paths import build

IMAGES = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
BRANCHES = ["branch1", "branch2"]


def timm_resnet() -> nn.Module:
    return pytest.importorskip("timm").create_model("resnet10t", num_classes=5)


def timm_vit() -> nn.Module:
    return pytest.importorskip("timm").create_model(
        "vit_tiny_patch16_224", num_classes=5, img_size=32, patch_size=16, depth=3
    )


NETWORKS = {
    "resnet8": (lambda: resnet8(5), "layer3"),
    "resnet20": (lambda: resnet20(5), "layer2"),
    "wrn": (lambda: wrn_16_1(5), "block3"),
    "mlp": (lambda: mlp(3 * 32 * 32, [8, 8, 8], 5), "hidden.1"),
    "torchvision": (lambda: torchvision.models.resnet18(num_classes=5), "layer4"),
    "densenet": (lambda: torchvision.models.DenseNet(8, (2, 2), 16, num_classes=5), "features.denseblock2"),
    "mobilenet": (lambda: torchvision.models.mobilenet_v2(num_classes=5, width_mult=0.25, dropout=0.0), "features.12"),
    "timm": (timm_resnet, "layer4"),
    "vit": (timm_vit, "blocks.1"),
}


def small(**given: object) -> Branched:
    torch.manual_seed(0)
    return Branched(resnet8(5), **given)


def same_state(one: nn.Module, other: nn.Module) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return list(first) == list(second) and all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.full
@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("name", NETWORKS)
def test_copied_branches_equal_the_plain_network_bit_for_bit(name, mode):
    make, fork = NETWORKS[name]
    torch.manual_seed(0)
    plain, images = make().double(), IMAGES.double()  # a bias before a normalization has no gradient but rounding
    plain(images)  # running statistics that are not the initial ones
    network = Branched(copy.deepcopy(plain), fork, redraw=False)
    plain.train(mode == "train")
    network.train(mode == "train")
    expected = plain(images)
    logits = network(images)
    assert list(logits) == ["logits", *BRANCHES]
    assert all(torch.equal(each, expected) for each in logits.values())
    assert same_state(network.network, plain)  # the trunk's statistics were updated once
    expected.square().sum().backward()
    sum(each.square().sum() for each in logits.values()).backward()
    alone = network.alone("branch1")
    assert same_state(alone, plain)
    assert torch.equal(alone.eval()(images), plain.eval()(images))
    around = network._around
    largest = max(float(parameter.grad.abs().max()) for parameter in plain.parameters())
    for key, parameter in plain.named_parameters():
        trunk = (
            any(key.startswith(f"{layer}.") for layer in around.before) or "." not in key
        )  # a ViT's parameters outside layers
        got = network.network.get_parameter(key).grad
        if trunk:
            torch.testing.assert_close(got, 3 * parameter.grad, rtol=1e-9, atol=1e-9 * largest)
        else:
            assert torch.equal(got, parameter.grad)
            assert torch.equal(network.branch1.get_parameter(key).grad, parameter.grad)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_parameter_is_there_once_and_learns(name):
    make, fork = NETWORKS[name]
    plain = make()
    network = Branched(copy.deepcopy(plain), fork)
    assert same_state(network.network, plain)  # only the branches are redrawn
    parameters = [id(parameter) for parameter in network.parameters()]
    assert len(parameters) == len(set(parameters))
    before = network._around.before
    trunk = {key for key in network.network.state_dict() if any(key.startswith(f"{layer}.") for layer in before)}
    assert trunk
    assert not trunk & network.branch1.state_dict().keys()
    assert trunk | network.branch1.state_dict().keys() == network.network.state_dict().keys()
    sum(each.sum() for each in network(IMAGES).values()).backward()
    assert not [key for key, parameter in network.named_parameters() if parameter.grad is None]


def test_the_trunk_runs_once_and_leaves_no_hook():
    network = small(branches=4)
    calls = []
    handle = network.network.layer2.register_forward_hook(lambda *given: calls.append(1))
    network(IMAGES)
    network.eval()(IMAGES)
    handle.remove()
    assert calls == [1, 1]
    for module in network.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert not getattr(module, "kept", [])
    counts = {int(value) for key, value in network.state_dict().items() if key.endswith("num_batches_tracked")}
    assert counts == {1}


def gradients(network: nn.Module, parts: list[str]) -> list[torch.Tensor]:
    """By the trunk's parameters, of the summed losses of the heads ``parts``."""
    network.zero_grad()
    logits = network(IMAGES.double())
    sum(((number + 1) * logits[part]).square().sum() for number, part in enumerate(logits) if part in parts).backward()
    trunk = ("conv1", "bn1", "layer1", "layer2")
    return [p.grad.clone() for name, p in network.network.named_parameters() if name.startswith(trunk)]


def test_the_trunk_gets_the_mean_or_sum_of_the_gradients():
    plain, averaged = small().double().eval(), small(average_gradient=True).double().eval()
    heads = ["logits", *BRANCHES]
    single = [gradients(plain, [head]) for head in heads]
    for number, (whole, part) in enumerate(zip(gradients(plain, heads), gradients(averaged, heads), strict=True)):
        expected = sum(each[number] for each in single)
        assert expected.abs().max() > 0
        torch.testing.assert_close(whole, expected, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(part, expected / 3, rtol=1e-9, atol=1e-9)
    images = IMAGES.double()
    assert all(torch.equal(plain(images)[head], averaged(images)[head]) for head in heads)
    averaged.zero_grad()
    averaged(images)["branch1"].sum().backward()
    plain.zero_grad()
    plain(images)["branch1"].sum().backward()
    assert torch.equal(averaged.branch1.fc.weight.grad, plain.branch1.fc.weight.grad)  # the heads learn at full rate


def test_a_head_gives_no_gradient_to_another():
    network = small()
    network(IMAGES)["branch1"].sum().backward()
    assert all(p.grad is not None for p in network.branch1.parameters())
    assert all(p.grad is None for p in network.branch2.parameters())
    assert network.network.fc.weight.grad is None
    assert network.network.conv1.weight.grad is not None


def test_own_inputs_give_every_head_its_part():
    network = small(own_inputs=True)
    references = {head: network.alone(head) for head in ["", *BRANCHES]}
    logits = network(IMAGES)
    assert [len(each) for each in logits.values()] == [2, 2, 2]
    for number, (head, reference) in enumerate(references.items()):
        rows = slice(2 * number, 2 * number + 2)  # at the fork: the trunk runs once and normalizes over all views
        handle = reference.layer3.register_forward_pre_hook(lambda module, args, rows=rows: (args[0][rows],))
        assert torch.equal(logits[head or "logits"], reference(IMAGES))
        handle.remove()
    network.eval()
    whole = network(IMAGES)
    for head in references:
        assert torch.equal(whole[head or "logits"], network.alone(head)(IMAGES))


def test_own_inputs_equal_the_branches_on_their_parts():
    network = small(own_inputs=True)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    for part, head, logits in zip(IMAGES.chunk(3), ["", *BRANCHES], network(IMAGES).values(), strict=True):
        torch.testing.assert_close(logits, network.alone(head)(part), rtol=1e-5, atol=1e-6)


def test_own_inputs_need_equal_parts_in_training_alone():
    network = small(own_inputs=True)
    with pytest.raises(InputError, match="3 equal parts, one per head, but it has 5 rows"):
        network(IMAGES[:5])
    assert len(network.eval()(IMAGES[:5])["branch2"]) == 5


def test_redrawn_parameters_keep_mean_std_and_constants():
    torch.manual_seed(0)
    wide = resnet20(7).double()
    with torch.no_grad():
        wide.fc.bias.fill_(0.1)  # a constant whose mean is another number
    network = Branched(wide, branches=3)
    first, second = (dict(network.get_submodule(branch).named_parameters()) for branch in BRANCHES)
    for name, parameter in first.items():
        given = wide.get_parameter(name)
        if given.unique().numel() == 1:
            assert torch.equal(parameter, given)
            continue
        assert not torch.equal(parameter, given)
        assert not torch.equal(parameter, second[name])
        error = given.std() / given.numel() ** 0.5
        assert (parameter.mean() - given.mean()).abs() < 5 * error
        assert (parameter.std() / given.std() - 1).abs() < 5 / given.numel() ** 0.5
    torch.manual_seed(0)
    again = Branched(resnet8(5))
    assert same_state(again, small())  # from the global generator


def test_losses_see_each_head_as_a_network_of_its_own():
    network = small().eval()
    outputs = Observer(network, ["layer2", "layer3", "layer3.0.preact"])(IMAGES)
    assert list(outputs.heads) == BRANCHES
    for head in ["", *BRANCHES]:
        seen = outputs.heads[head] if head else outputs
        expected = Observer(network.alone(head), ["layer2", "layer3", "layer3.0.preact"])(IMAGES)
        for got, value in zip(seen.tensors(), expected.tensors(), strict=False):
            assert torch.equal(got, value)
        assert seen.embedding.shape == (6, 64)
    shared = heads_of(network)["branch1"].layer
    assert shared("layer2.0.relu1") == "network.layer2.0.relu1"
    assert shared("layer3.0") == "branch1.layer3.0"
    assert shared("fc") == "branch1.fc"
    assert heads_of(network)[""].layer("fc") == "network.fc"
    assert network.get_classifier() is network.network.fc
    assert heads_of(network)["branch2"].classifier is network.branch2.fc


@pytest.mark.parametrize("fork", ["layer3", "fc"])
def test_a_fork_at_the_classifier_gives_each_head_its_embedding(fork):
    outputs = Observer(small(fork=fork, own_inputs=True), ["fc"])(IMAGES)
    assert [len(each.embedding) for each in (outputs, *outputs.heads.values())] == [2, 2, 2]
    averaged = small(fork=fork, average_gradient=True)
    outputs, single = Observer(averaged)(IMAGES), []
    for head in (outputs, *outputs.heads.values()):
        averaged.zero_grad()
        head.embedding.square().sum().backward(retain_graph=True)
        single.append(averaged.network.conv1.weight.grad.clone())
    plain = Observer(averaged.network)(IMAGES)
    averaged.zero_grad()
    plain.embedding.square().sum().backward()
    torch.testing.assert_close(single[0], averaged.network.conv1.weight.grad / 3, rtol=1e-4, atol=1e-4)


def test_it_comes_back_from_its_file(tmp_path):
    network = small()
    network(IMAGES)
    save_weights(network, tmp_path / "net.safetensors")
    torch.manual_seed(1)
    again = Branched(resnet8(5), weights=str(tmp_path / "net.safetensors"))
    assert same_state(again, network)
    assert {key.split(".")[0] for key in again.state_dict()} == {"network", *BRANCHES}


def test_copies_and_pickles_are_independent_and_the_same():
    network = small().eval()
    for twin in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert all(torch.equal(twin(IMAGES)[head], value) for head, value in network(IMAGES).items())
        with torch.no_grad():
            twin.network.conv1.weight.zero_()
        assert not torch.equal(twin(IMAGES)["branch1"], network(IMAGES)["branch1"])


def test_a_head_alone_is_a_copy():
    network = small()
    for head in ["", *BRANCHES]:
        alone = network.alone(head)
        assert list(alone.state_dict()) == list(resnet8(5).state_dict())
        assert not {id(p) for p in alone.parameters()} & {id(p) for p in network.parameters()}
    with pytest.raises(InputError, match=r"There is no head 'branch3'; the nearest names are .*'branch2'"):
        network.alone("branch3")


def test_it_works_by_class_path():
    network = build(
        "=kdlab.models.Branched",
        ".fork=layer3",
        ".branches=2",
        ".network=kdlab.models.resnet8",
        ".network.init_args.num_classes=5",
    )
    assert [tuple(each.shape) for each in network(IMAGES).values()] == [(6, 5), (6, 5)]


@pytest.mark.parametrize("branches", [1, 0, 2.0, True])
def test_bad_numbers_of_branches(branches):
    with pytest.raises(InputError, match="branches must be a whole number of at least 2"):
        small(branches=branches)


def test_an_unknown_fork_gets_near_names():
    with pytest.raises(InputError, match=r"has no layer 'layer4'; the nearest names are .*'layer3'"):
        small(fork="layer4")
