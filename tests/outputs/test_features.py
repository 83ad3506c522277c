"""Backbones without classifiers, and their tokens and maps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdlab.errors import InputError
from kdlab.outputs import Outputs, observe
from kdlab.outputs.network_layers import classifier_of

timm = pytest.importorskip("timm")


def seen(network: nn.Module, *layers: str, size: tuple[int, int] = (32, 32)) -> tuple[Outputs, Tensor]:
    torch.manual_seed(0)
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        return observe(network.eval(), images, layers), images


def tiny_vit(classes: int = 0, **options: Any) -> Any:
    options = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, **options}
    torch.manual_seed(1)
    return timm.models.VisionTransformer(num_classes=classes, **options)


def test_a_headless_vit_has_its_output_as_embedding() -> None:
    network = tiny_vit()
    outputs, images = seen(network)
    with torch.no_grad():
        expected = network.forward_features(images)[:, 0]
    assert outputs.embedding is not None
    assert torch.equal(outputs.embedding, expected)
    assert classifier_of(network) is None  # not blocks.1.mlp.fc2


def torchvision_vit() -> nn.Module:
    from torchvision.models import VisionTransformer

    network = VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=5)
    network.heads = nn.Identity()
    return network


def torchvision_resnet() -> nn.Module:
    from torchvision.models import resnet18

    network = resnet18()
    network.fc = nn.Identity()
    return network


class SqueezeLast(nn.Module):
    """A linear layer inside (squeeze and excitation) is the last one that runs; pooling follows."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.gate, self.pool = nn.Conv2d(3, 8, 3), nn.Linear(8, 8), nn.AdaptiveAvgPool2d(1)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv(images)
        gated = self.pool(maps * self.gate(maps.mean((2, 3)))[:, :, None, None])
        return gated.flatten(1)


class SaysSo(nn.Module):
    num_classes = 0

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.conv(images).mean((2, 3))


@pytest.mark.parametrize(
    "build",
    [
        lambda: timm.create_model("resnet10t", num_classes=0),
        torchvision_vit,
        torchvision_resnet,
        SqueezeLast,
        SaysSo,
    ],
    ids=["timm-resnet", "torchvision-vit", "torchvision-resnet", "squeeze", "own"],
)
def test_a_network_without_classifier_has_its_output_as_embedding(build: Callable[[], nn.Module]) -> None:
    network = build()
    outputs, images = seen(network)
    with torch.no_grad():
        assert outputs.embedding is not None
        assert torch.equal(outputs.embedding, network(images))


def test_class_scores_of_a_convolution_are_no_embedding() -> None:
    network = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert seen(network)[0].embedding is None


@pytest.mark.parametrize("last", [nn.Identity(), nn.Softmax(1), nn.BatchNorm1d(4)])
def test_a_classifier_stays_one_before_elementwise_layers(last: nn.Module) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 6), nn.ReLU(), nn.Linear(6, 4), last)
    outputs, images = seen(network)
    with torch.no_grad():
        assert outputs.embedding is not None
        assert torch.equal(outputs.embedding, network[:3](images))


@pytest.mark.parametrize(("registers", "size"), [(0, (32, 32)), (4, (32, 32)), (4, (32, 48))])
def test_tokens_and_map_leave_class_and_registers_out(registers: int, size: tuple[int, int]) -> None:
    network = tiny_vit(reg_tokens=registers, img_size=size)
    outputs, images = seen(network, "features", "features:tokens", "features:map", "norm:map", size=size)
    plain, tokens, as_map, of_layer = outputs.layers
    rows, columns = size[0] // 8, size[1] // 8
    with torch.no_grad():
        assert torch.equal(plain, network.forward_features(images))
    assert torch.equal(tokens, plain[:, 1 + registers :])
    assert as_map.shape == (2, 16, rows, columns)
    for row in range(rows):  # patches in rows, as the patch embedding lays them
        assert torch.equal(as_map[:, :, row, 1], plain[:, 1 + registers + row * columns + 1])
    assert torch.equal(of_layer, as_map)
    assert "forward_features" not in vars(network)


def test_a_torchvision_vit_has_a_map() -> None:
    outputs, _ = seen(torchvision_vit(), "encoder", "encoder:map")
    tokens, as_map = outputs.layers
    assert torch.equal(as_map.flatten(2).transpose(1, 2), tokens[:, 1:])


def test_layers_that_are_no_grid_are_refused() -> None:
    network = nn.Sequential(nn.Flatten(2), nn.Linear(1024, 7), nn.Flatten(), nn.Linear(21, 2))
    with pytest.raises(InputError, match=r"The 3 tokens of layer '1:map' are no grid"):
        seen(network, "1:map")
    with pytest.raises(InputError, match="neither tokens"):
        seen(network, "2:map")


@pytest.mark.full
def test_hugging_face_backbones_give_pooled_output_tokens_and_maps() -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    config = transformers.Dinov2WithRegistersConfig(**sizes, num_register_tokens=4)
    network = transformers.Dinov2WithRegistersModel(config)
    outputs, images = seen(network, "features", "features:map")
    with torch.no_grad():
        raw = network.eval()(images)
    assert outputs.embedding is not None
    assert torch.equal(outputs.embedding, raw.pooler_output)
    assert torch.equal(outputs.layers[0], raw.last_hidden_state)
    assert torch.equal(outputs.layers[1].flatten(2).transpose(1, 2), raw.last_hidden_state[:, 5:])


@pytest.mark.full
def test_a_configuration_of_hugging_face_makes_a_backbone_without_download(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    from kdlab.models import hugging_face

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    transformers.Dinov2Config(**sizes).save_pretrained(tmp_path)
    network = hugging_face(str(tmp_path), "features", pretrained=False)
    outputs, _ = seen(network, "features:map")
    assert outputs.embedding is not None
    assert outputs.embedding.shape == (2, 16)
    assert outputs.layers[0].shape == (2, 16, 4, 4)
