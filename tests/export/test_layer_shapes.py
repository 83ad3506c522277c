"""layer_shapes: the layers that a loss can tap."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet18

from kdlab.errors import InputError
from kdlab.export.layer_shapes import shape_text, shapes, taps
from kdlab.models import mlp
from kdlab.outputs import Head


def test_shapes_are_those_of_one_sample() -> None:
    rows = {name: shape for name, _, shape in shapes(mlp(64, [16, 8], 10), (1, 8, 8))}
    assert (rows["hidden.0"], rows["fc"]) == ("16", "10")
    with pytest.raises(InputError, match=r"does not take an input of 3 x 8 x 8 .*: give its shape with --input"):
        shapes(mlp(64, [16, 8], 10), (3, 8, 8))


def test_a_layer_that_gives_no_tensor_or_does_not_run() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pair, self.idle, self.sum = Pair(), nn.Linear(2, 2), nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            return self.sum(self.pair(x)[0].sum().expand(2))

    class Pair(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, x

    assert [(name, shape) for name, _, shape in shapes(Odd(), (3,))] == [("pair", "tuple"), ("sum", "scalar")]


def test_shape_text() -> None:
    assert [shape_text(shape) for shape in ((), (3,), torch.Size((3, 4)))] == ["scalar", "3", "3 x 4"]


def test_a_layer_that_one_output_lacks_is_not_listed() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.own, self.other = nn.Linear(2, 2), nn.Linear(2, 2)

        @property
        def heads(self) -> dict[str, Head]:
            return {"": Head(self.own, str), "other": Head(self.other, lambda name: "other" if name == "own" else "")}

    network = Two()
    assert taps(network) == {"own": network.own}


def test_each_call_of_a_layer_has_a_row() -> None:
    rows = {name: shape for name, _, shape in shapes(resnet18(num_classes=5), (3, 64, 64)) if "layer2.0" in name}
    calls = {"layer2.0.relu@0": "128 x 8 x 8", "layer2.0.relu@1": "128 x 8 x 8"}
    assert {name: shape for name, shape in rows.items() if "relu" in name} == calls
    assert rows["layer2.0.bn1"] == "128 x 8 x 8"
