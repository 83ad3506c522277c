"""The published CIFAR-10 networks of Y. Idelbayev load as they are and get their accuracy on real images."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor

from kdlab import models
from kdlab.cli import main
from kdlab.data.image_tree import Tree
from kdlab.errors import InputError
from tests.data.real import DATA, needs_data
from tests.tiers import tiered

pytestmark = needs_data
FILES = {20: "resnet20-12fca82f", 32: "resnet32-d509ac18", 44: "resnet44-014dd654", 56: "resnet56-4bfd9763"}
RIGHT = {20: 8103, 32: 8256, 44: 8267, 56: 8320}  # of 10,000, from the README of the shared data
QUIET = ("logger", "enable_progress_bar", "enable_checkpointing")
MEAN, STD = (torch.tensor(x).view(3, 1, 1) for x in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))


def file(depth: int) -> str:
    return str(DATA / "teachers_cifar10" / f"{FILES[depth]}.th")


def content(depth: int) -> dict[str, Tensor]:
    state: dict[str, Tensor] = torch.load(file(depth), "cpu", weights_only=True)["state_dict"]
    return state


def images(count: int) -> tuple[Tensor, Tensor]:
    tree = Tree(DATA / "cifar10_jpeg" / "test.zip")
    places = range(0, len(tree), len(tree) // count)
    return torch.stack([(tree.image(i) / 255 - MEAN) / STD for i in places]), tree.labels[list(places)]


def option_a(state: dict[str, Tensor], x: Tensor, blocks: int) -> Tensor:
    """He et al., section 4.2, with shortcut A, by functional calls on the tensors of the file."""

    def conv(x: Tensor, at: str, stride: int = 1) -> Tensor:
        x = F.conv2d(x, state[f"module.{at.replace('bn', 'conv')}.weight"], None, stride, 1)
        names = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(x, *(state[f"module.{at}.{name}"] for name in names))

    x = conv(x, "bn1").relu()
    for stage in (1, 2, 3):
        for block in range(blocks):
            at, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            short = x
            if stride == 2:
                short = x.new_zeros(len(x), 2 * x.shape[1], x.shape[2] // 2, x.shape[3] // 2)
                short[:, x.shape[1] // 2 : x.shape[1] // 2 + x.shape[1]] = x[:, :, ::2, ::2]
            x = (conv(conv(x, f"{at}.bn1", stride).relu(), f"{at}.bn2") + short).relu()
    return F.linear(x.mean((2, 3)), state["module.linear.weight"], state["module.linear.bias"])


@pytest.mark.parametrize("depth", tiered(FILES, [20]))
def test_published_networks_equal_their_formula(depth: int) -> None:
    network = getattr(models, f"resnet{depth}")(10, weights=file(depth), shortcut="pad").eval()
    x, labels = images(50)
    with torch.no_grad():
        logits = network(x)
        right = option_a(content(depth), x, (depth - 2) // 6)
    torch.testing.assert_close(logits, right, atol=2e-4, rtol=1e-4)
    assert (logits.argmax(1) == labels).float().mean() > 0.6


LONG = [pytest.param(depth, marks=pytest.mark.full if depth == 20 else pytest.mark.nightly) for depth in FILES]


@pytest.mark.parametrize("depth", LONG)
def test_published_accuracy_is_exact(depth: int) -> None:
    network = getattr(models, f"resnet{depth}")(10, weights=file(depth), shortcut="pad").eval()
    x, labels = images(10_000)
    with torch.no_grad():
        classes = torch.cat([network(part).argmax(1) for part in x.split(500)])
    assert int((classes == labels).sum()) == RIGHT[depth]


@pytest.mark.full
def test_published_teacher_in_a_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/train.zip").symlink_to(DATA / "cifar10_jpeg/train_10k.zip")
    (tmp_path / "data/test.zip").symlink_to(DATA / "cifar10_jpeg/test.zip")
    options = {"num_classes": 10, "weights": file(20), "shortcut": "pad"}
    teacher = {"class_path": "kdlab.models.resnet20", "init_args": options}
    student = {"class_path": "kdlab.models.resnet8", "init_args": {"num_classes": 10}}
    soft = {"loss": {"class_path": "kdlab.losses.SoftTargets", "init_args": {"temperature": 4.0}}}
    distiller = {"student": student, "teacher": teacher, "knowledge": {"soft": soft}}
    config = {
        "trainer": {"accelerator": "cpu", "limit_test_batches": 2, **dict.fromkeys(QUIET, False)},
        "model": {"class_path": "kdlab.Distiller", "init_args": distiller},
        "data": {
            "class_path": "kdlab.data.ImageFolder",
            "init_args": {"root": str(tmp_path / "data"), "batch_size": 100},
        },
    }
    (tmp_path / "kd.yaml").write_text(yaml.safe_dump(config))
    main(["check", "-c", str(tmp_path / "kd.yaml")])
    main(["test", "-c", str(tmp_path / "kd.yaml")])
    x, labels = images(10_000)
    with torch.no_grad():
        right = (option_a(content(20), x[:1024], 3).argmax(1) == labels[:1024]).double().mean()  # two batches of 512
    said = re.search(r"test/teacher_accuracy\W+([\d.]+)", capsys.readouterr().out)
    assert said is not None
    assert float(said[1]) == pytest.approx(float(right), abs=1e-9)


def test_a_shortcut_is_one_of_two() -> None:
    with pytest.raises(InputError, match="shortcut is 'projection' or 'pad', not 'zero'"):
        models.resnet8(10, shortcut="zero")
    network = models.resnet8x4(10, shortcut="pad").eval()  # the stem's 32 channels become 64
    assert sum(x.numel() for x in network.layer1[0].downsample.parameters()) == 0
    x = torch.rand(2, 32, 5, 5)
    padded = network.layer1[0].downsample(x)
    assert torch.equal(padded[:, 16:48], x)
    assert not padded[:, :16].any()
    assert not padded[:, 48:].any()
