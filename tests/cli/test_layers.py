"""layers: the names and shapes that can be tapped."""

from __future__ import annotations

import pytest
import torch

from kdlab.cli import main
from kdlab.cli.layers import network_from
from kdlab.export.layer_shapes import shape_text, shapes, taps
from kdlab.outputs import Observer


def test_layers_of_a_cifar_network(capsys: pytest.CaptureFixture[str]) -> None:
    main(["layers", "kdlab.models.resnet8x4", "--num_classes=10"])
    said = " ".join(capsys.readouterr().out.split())
    assert "layer2 │ Sequential │ 128 x 16 x 16 │ 230,144" in said
    assert "layer2.0.preact │ Identity │ 128 x 16 x 16" in said
    assert "fc │ Linear │ 10 │ 2,570" in said


def test_layers_of_torchvision_at_its_own_size_and_depth(capsys: pytest.CaptureFixture[str]) -> None:
    main(["layers", "torchvision.models.resnet18", "--input=3,64,64", "--depth=1"])
    said = " ".join(capsys.readouterr().out.split())
    assert "layer4 │ Sequential │ 512 x 2 x 2" in said
    assert "layer1.0" not in said


@pytest.mark.parametrize(
    ("options", "further", "feature"),
    [
        (["kdlab.models.Branched", "--branches=2"], "branch1", False),
        (["kdlab.models.WithExits", "--adapter=stages"], "exit1, exit2", True),
    ],
)
def test_layers_with_further_outputs_are_those_a_loss_can_name(
    options: list[str], further: str, feature: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    own = ["--network=kdlab.models.resnet8", "--network.num_classes=10"]
    main(["layers", *options, *own])
    said = " ".join(capsys.readouterr().out.split())
    assert "layer2.0.conv1 │ Conv2d │ 32 x 16 x 16" in said
    assert f"The network has further outputs: {further}." in said
    assert ("feature │ Sequential │ 64 x 8 x 8" in said) is feature
    network = network_from(options[0], [*options[1:], *own])
    listed = taps(network)
    seen = Observer(network.eval(), list(listed))(torch.zeros(2, 3, 32, 32))
    shapes_listed = {name: shape for name, _, shape in shapes(network, (3, 32, 32))}
    assert {name: shape_text(x.shape[1:]) for name, x in zip(seen.names, seen.layers, strict=True)} == shapes_listed
    assert all(len(head.layers) == len(listed) for head in seen.heads.values())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["kdlab.models.resnet8x"], "did you mean 'resnet8x4'"),
        (["kdlab.models.resnet8", "--num_clases=3"], "unknown key 'num_clases'"),
        (["kdlab.models.mlp"], "give its shape with --input"),
        (["kdlab.models.resnet8", "--input=3x32"], "numbers with commas"),
        (["kdlab.models.resnet8", "--weights=gone.pt"], "no weights file 'gone.pt'"),
    ],
)
def test_mistakes_are_one_sentence(capsys: pytest.CaptureFixture[str], arguments: list[str], said: str) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["layers", *arguments])
    assert stop.value.code == 2
    assert said in capsys.readouterr().err
