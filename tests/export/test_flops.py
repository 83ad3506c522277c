"""Operations of a forward, against what the layers' shapes say by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from kdlab import models
from kdlab.errors import InputError
from kdlab.export.flops import flops_of


def test_resnet20_by_hand() -> None:
    """Multiply-adds of K. He et al., 2016, table 6: 3x3 convolutions at 32, 16 and 8 pixels; shortcuts of 1x1."""
    stem = 9 * 3 * 16 * 32**2
    first = 6 * 9 * 16 * 16 * 32**2
    second = (9 * 16 * 32 + 5 * 9 * 32 * 32 + 16 * 32) * 16**2
    third = (9 * 32 * 64 + 5 * 9 * 64 * 64 + 32 * 64) * 8**2
    assert flops_of(models.resnet20(100), torch.zeros(2, 3, 32, 32)) == 2 * (stem + first + second + third + 64 * 100)


def transformer(tokens: int, width: int, hidden: int, depth: int) -> int:
    """Multiply-adds of encoder layers: query, key, value, output; scores and mixtures; the two layers of the MLP."""
    return depth * (4 * tokens * width**2 + 2 * tokens**2 * width + 2 * tokens * width * hidden)


@pytest.mark.full  # imports timm
def test_a_vision_transformer_by_hand() -> None:
    timm = pytest.importorskip("timm")
    network = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=10)
    patches = 4 * 4
    right = patches * 16 * 16 * 3 * 192 + transformer(patches + 1, 192, 768, 12) + 192 * 10
    assert flops_of(network, torch.zeros(1, 3, 64, 64)) == 2 * right


def test_a_transformer_encoder_by_hand() -> None:
    """The fused path and the attention kernel of the CPU count nothing: both are left out."""
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    network = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).requires_grad_(False)
    assert flops_of(network, torch.zeros(1, 10, 32)) == 2 * transformer(10, 32, 64, 2)


class Distances(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cdist(x, x[:1])


def test_what_cannot_be_counted_is_said() -> None:
    with pytest.raises(InputError, match=r"not counted \(aten\._?cdist"):
        flops_of(Distances(), torch.ones(2, 3))
    with pytest.raises(InputError, match=r"not counted \(no operator of the counter\)"):
        flops_of(nn.ReLU(), torch.ones(2, 3))
