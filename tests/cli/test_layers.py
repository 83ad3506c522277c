"""layers: the names and shapes that can be tapped."""

from __future__ import annotations

import pytest

from kdlab.cli import main


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
