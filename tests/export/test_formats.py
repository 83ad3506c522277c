"""Exported files: each format runs in its own runtime as the network does, and a wrong file is caught."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdlab import models
from kdlab.data.augment import normalize
from kdlab.data.image_tree import Tree
from kdlab.errors import ExportMismatchError, InputError
from kdlab.export import export_checked, to_onnx
from kdlab.export.formats import FORMATS, requirements
from kdlab.export.parity import Sample, check
from tests.data.real import DATA, needs_data

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
NAMES = [pytest.param(name, marks=pytest.mark.full) for name in FORMATS]


def installed(format: str) -> str:
    """Skip the test where the format's packages are missing."""
    for package in FORMATS[format].packages:
        pytest.importorskip(package)
    return FORMATS[format].suffix


def images(file: str, count: int) -> tuple[Tensor, Tensor]:
    tree = Tree(DATA / "cifar10_jpeg" / file)
    places = range(0, len(tree), len(tree) // count)
    return torch.stack([tree.image(i) for i in places]), tree.labels[list(places)]


def published() -> nn.Module:
    """A trained network: resnet20 of Y. Idelbayev, 81 % on these images."""
    return models.resnet20(10, weights=str(DATA / "teachers_cifar10/resnet20-12fca82f.th"), shortcut="pad").eval()


def samples(raw: bool, count: int = 500) -> list[Sample]:
    given, labels = images("test.zip", count)
    inputs = normalize(given, MEAN, STD)
    columns = (given if raw else inputs, inputs, labels)
    return [Sample(*part) for part in zip(*(column.split(250) for column in columns), strict=True)]


@needs_data
@pytest.mark.parametrize("raw", [False, True], ids=["normalized", "uint8"])
@pytest.mark.parametrize("name", NAMES)
def test_each_format_runs_as_the_network(name: str, raw: bool, tmp_path: Path) -> None:
    path = tmp_path / f"net{installed(name)}"
    batches, network = samples(raw), published()
    mean, std = (MEAN, STD) if raw else (None, None)
    checked = export_checked(network, path, batches, format=name, example=batches[0].file_inputs, mean=mean, std=std)
    assert set(checked.differences) == {1, 7, 32}
    assert max(checked.differences.values()) < 1e-4
    assert checked.scores["accuracy"] > 0.75
    assert checked.scores["agreement"] == 1
    assert sorted(file.suffix for file in tmp_path.iterdir()) == sorted([path.suffix, *FORMATS[name].further])
    metadata = FORMATS[name].read_metadata(path)
    assert metadata["preprocessing"] == {"shape": [3, 32, 32], "dtype": "uint8" if raw else "float32"}
    assert metadata["parameters"] == 269_722  # 9 x 16 x 3 + 6 x 9 x 16^2 + ... + 650, as the paper's 0.27 M
    with torch.no_grad():  # independent of the check: one image, by hand
        logits = network(
            ((images("test.zip", 2)[0].float() / 255) - torch.tensor(MEAN)[:, None, None]).div(
                torch.tensor(STD)[:, None, None]
            )[:1]
        )
    torch.testing.assert_close(FORMATS[name].load(path)(batches[0].file_inputs[:1]), logits, rtol=1e-3, atol=1e-3)


@needs_data
@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.full) for n, f in FORMATS.items() if f.write_int8])
def test_int8_is_small_and_as_accurate(name: str, tmp_path: Path) -> None:
    path = tmp_path / f"net{installed(name)}"
    batches, calibration = samples(False), normalize(images("train_10k.zip", 200)[0], MEAN, STD)
    checked = export_checked(
        published(), path, batches, format=name, example=batches[0].file_inputs, calibration=calibration
    )
    size = sum(file.stat().st_size for file in tmp_path.iterdir())
    # Of a network of 1 MB the graph is a part, which OpenVINO writes as text.
    assert size < {"onnx": 0.3, "executorch": 0.45, "openvino": 0.5}[name] * 4 * 269_722
    assert checked.scores["accuracy"] > checked.scores["network_accuracy"] - 0.01
    assert 0.9 < checked.scores["agreement"] <= 1


@needs_data
@pytest.mark.full
def test_a_broken_weight_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    onnx = pytest.importorskip("onnx")
    installed("onnx")
    write = FORMATS["onnx"].write

    def broken(network: nn.Module, example: Tensor, path: Path, metadata: dict[str, object]) -> None:
        write(network, example, path, metadata)
        model = onnx.load(path)
        tensor = max(model.graph.initializer, key=lambda one: len(one.raw_data))
        values = onnx.numpy_helper.to_array(tensor).copy()
        values.flat[0] += 10
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
        onnx.save(model, path)

    monkeypatch.setitem(FORMATS, "onnx", FORMATS["onnx"]._replace(write=broken))
    batches = samples(False, 250)
    with pytest.raises(ExportMismatchError, match=r"net\.onnx is not the network: outputs differ at batch 1, 7, 32 by"):
        export_checked(published(), tmp_path / "net.onnx", batches, format="onnx", example=batches[0].file_inputs)
    assert [file.name for file in tmp_path.iterdir()] == ["net.failed.onnx"]


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x.flatten(1)
        return -x.flatten(1)


class OfMapping(nn.Module):
    def forward(self, x: dict[str, Tensor]) -> Tensor:
        return x["input_ids"].float()


class Unsupported(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.special.airy_ai(x.flatten(1))


class FixedBatch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(2, -1)


@pytest.mark.full
@pytest.mark.parametrize(
    ("network", "words"),
    [
        (Branching(), ["Branching", "test_formats.py, line", "Nothing was written"]),
        (Unsupported(), ["Unsupported", "airy_ai", "test_formats.py, line", "Nothing was written"]),
        (FixedBatch(), ["FixedBatch", "batch"]),
    ],
)
def test_networks_that_cannot_be_exported(network: nn.Module, words: list[str], tmp_path: Path) -> None:
    installed("onnx")
    with pytest.raises(InputError) as error:
        to_onnx(network, tmp_path / "net.onnx", torch.ones(4, 1, 3, 3))
    assert [word for word in words if word not in str(error.value)] == []
    assert list(tmp_path.iterdir()) == []


def test_a_network_of_a_mapping_is_refused(tmp_path: Path) -> None:
    from kdlab.export.torch_program import capture

    with pytest.raises(InputError, match="takes a mapping \\('input_ids'\\): kdlab exports networks of one tensor"):
        capture(OfMapping(), {"input_ids": torch.ones(2, 3)})  # type: ignore[arg-type]


def test_check_by_hand() -> None:
    """Four samples, of which the file gets one wrong that the network gets right: 75 % of 100 %, agreement 3 of 4."""
    inputs, target = torch.eye(4), torch.arange(4)
    wrong = torch.eye(4)[[0, 1, 2, 0]]
    checked = check(lambda x: x @ wrong, nn.Identity(), [Sample(inputs, inputs, target)])
    assert (checked.scores["accuracy"], checked.scores["network_accuracy"], checked.scores["agreement"]) == (
        0.75,
        1,
        0.75,
    )
    assert checked.differences == {1: 0, 7: 1, 32: 1}
    assert "outputs differ at batch 7, 32 by up to 1 of the largest logit (bound 0.001)" in checked.complaint
    assert "accuracy is 75.00 % where the network's is 100.00 % (bound 0.1)" in checked.complaint
    assert check(lambda x: x, nn.Identity(), [Sample(inputs, inputs, target)]).complaint == ""
    assert "shape" in check(lambda x: x[:, :2], nn.Identity(), [Sample(inputs, inputs, target)]).complaint
    assert "differ" in check(lambda x: x * torch.nan, nn.Identity(), [Sample(inputs, inputs, target)]).complaint


def test_int8_is_bounded_by_its_score_alone() -> None:
    inputs, target = torch.eye(4), torch.arange(4)
    batch = [Sample(inputs, inputs, target)]
    assert check(lambda x: x * 0.9, nn.Identity(), batch, int8=True).complaint == ""
    assert "accuracy" in check(lambda x: -x, nn.Identity(), batch, int8=True).complaint
    assert check(lambda x: -x, nn.Identity(), batch, int8=True, points=100).complaint == ""


def test_formats_that_do_not_fit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="format is 'torch' or 'onnx' or 'executorch' or 'openvino', not 'onyx'"):
        requirements("onyx")
    with pytest.raises(InputError, match="The format 'torch' has no int8: use 'onnx', 'executorch', 'openvino'"):
        requirements("torch", int8=True)
    monkeypatch.setattr("kdlab.export.formats.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"needs onnx, onnxscript, onnxruntime: pip install 'kdlab\[export\]'"):
        requirements("onnx")


def test_metadata_hash_depends_on_every_tensor() -> None:
    from kdlab.export.deployed import about

    network = nn.BatchNorm1d(3)
    before = about(network)["weights"]
    network.running_mean += 1  # type: ignore[operator]
    assert about(network)["weights"] != before
    json.dumps(about(network, {"mean": [0.5]}, ["cat"], {"run": "version_0"}))


def test_normalization_in_the_graph_is_the_datas() -> None:
    from kdlab.export.deployed import Deployed

    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    right = (pixels.double() / 255 - torch.tensor(MEAN).double()[:, None, None]) / torch.tensor(STD).double()[
        :, None, None
    ]
    torch.testing.assert_close(Deployed(nn.Identity(), MEAN, STD)(pixels).double(), right, rtol=1e-5, atol=1e-6)
    assert F.mse_loss(Deployed(nn.Identity())(pixels.float()), pixels.float()) == 0
