"""Networks by class path, as the command line builds them, and what kdlab.models imports."""

import ast
import pathlib
import sys

import pytest
import torch
import torchvision
from jsonargparse import ArgumentParser
from torch import nn

import kdlab.models
from kdlab.errors import InputError
from kdlab.models import save_weights, timm_model
from kdlab.outputs import classifier_of


def build(*arguments):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--net", type=nn.Module)
    return parser.instantiate(parser.parse_args([f"--net{each}" for each in arguments])).net


FAMILIES = ("resnet", "wrn", "vgg", "cifar_resnet", "mobilenet", "shuffle")
BUILDERS = [each for each in kdlab.models.__all__ if each.startswith(FAMILIES)]


@pytest.mark.parametrize("name", BUILDERS)
def test_every_builder_works_by_class_path(name):
    with torch.device("meta"):
        network = build(f"=kdlab.models.{name}", ".num_classes=7", ".in_channels=1")
    assert classifier_of(network).out_features == 7
    assert next(each for each in network.modules() if isinstance(each, nn.Conv2d)).in_channels == 1


def test_there_are_25_builders():
    assert len(BUILDERS) == 25


@pytest.mark.parametrize("name", BUILDERS)
def test_every_builder_takes_a_weights_file(name, tmp_path):
    with torch.device("meta"), pytest.raises(InputError, match="There is no weights file"):
        getattr(kdlab.models, name)(weights=str(tmp_path / "none.pth"))


def test_the_mlp_takes_its_widths_as_a_list():
    network = build("=kdlab.models.mlp", ".hidden=[8, 6]", ".in_features=4", ".num_classes=3")
    assert [layer.linear.out_features for layer in network.hidden] == [8, 6]
    assert network(torch.zeros(1, 4)).shape == (1, 3)


def test_torchvision_networks_work_by_class_path():
    network = build("=torchvision.models.resnet18", ".num_classes=10")
    assert isinstance(network, torchvision.models.ResNet)
    assert network.fc.out_features == 10


def test_any_network_takes_a_weights_file_by_class_path(tmp_path):
    source = torchvision.models.squeezenet1_1(num_classes=3)
    save_weights(source, tmp_path / "net.safetensors")
    network = build(
        "=kdlab.models.with_weights",
        f".weights={tmp_path / 'net.safetensors'}",
        ".network=torchvision.models.squeezenet1_1",
        ".network.init_args.num_classes=3",
    )
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in network.state_dict().items())


def test_timm_networks_work_by_class_path(tmp_path):
    timm = pytest.importorskip("timm")
    network = build("=kdlab.models.timm_model", ".name=resnet10t", ".num_classes=5", ".in_chans=1")
    assert network(torch.zeros(2, 1, 32, 32)).shape == (2, 5)
    by_timm = '={"class_path": "timm.create_model", "init_args": {"model_name": "resnet10t"}, "dict_kwargs": %s}'
    assert isinstance(build(by_timm % '{"num_classes": 5}'), timm.models.ResNet)
    save_weights(network, tmp_path / "net.safetensors")
    again = timm_model("resnet10t", 5, in_chans=1, weights=str(tmp_path / "net.safetensors"))
    assert torch.equal(again.fc.weight, network.fc.weight)


def test_an_unknown_timm_network_gets_near_names():
    pytest.importorskip("timm")
    with pytest.raises(InputError, match=r"no network 'resnet10x'; the nearest names are .*'resnet10t'"):
        timm_model("resnet10x", 5)


def test_without_timm_the_message_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(InputError, match="'resnet18' needs timm: install it with `pip install timm`"):
        timm_model("resnet18", 5)


LOWER = ("kdlab.errors", "kdlab.compat", "kdlab.files", "kdlab.outputs", "kdlab.tokenization")


def test_models_import_only_lower_layers():
    """The standard library, torch, safetensors, lower files of kdlab and itself."""
    allowed = {"torch", "safetensors", *sys.stdlib_module_names}
    files = list(pathlib.Path(kdlab.models.__file__).parent.glob("*.py"))
    assert len(files) >= 7
    for file in files:
        for node in ast.parse(file.read_text()).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                lower = name in LOWER or name.startswith("kdlab.models.")
                assert lower or name.partition(".")[0] in allowed, f"{file.name} imports {name}"


def test_every_public_name_is_there():
    assert all(hasattr(kdlab.models, name) for name in kdlab.models.__all__)
