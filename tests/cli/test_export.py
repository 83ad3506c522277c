"""export: the student alone, under its own key names, out of a run or a checkpoint."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

from kdlab.cli import main
from kdlab.config.trained_run import trained_run
from kdlab.data import Digits
from kdlab.export.formats import FORMATS
from kdlab.models import mlp
from tests.config.test_lightning_cli import MLP, work  # noqa: F401

RUN = "runs/version_0"
QUIET = ["--trainer.enable_progress_bar=false", "--trainer.log_every_n_steps=1"]


@pytest.mark.full
def test_export_gives_the_student_with_its_own_names(work: Path, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    main(["fit", "-c", "kd.yaml"])
    main(["export", RUN])
    exported = load_file(work / RUN / "student.safetensors")
    network = mlp(64, [16], 10, weights=f"{RUN}/student.safetensors")
    assert set(exported) == set(network.state_dict())
    trained = torch.load(work / RUN / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(value, trained[f"student.{name}"]) for name, value in exported.items())
    config = yaml.safe_load((work / RUN / "student.yaml").read_text())
    assert config["class_path"] == "kdlab.models.mlp"
    assert config["init_args"]["weights"].endswith("student.safetensors")

    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["export", RUN])
    assert "exists already" in capsys.readouterr().err
    main(["export", f"{RUN}/checkpoints/last.ckpt", "--out", "elsewhere"])
    again = load_file(work / "elsewhere/student.safetensors")
    assert all(torch.equal(again[name], value) for name, value in exported.items())
    student = (work / RUN / "student.yaml").read_text()
    (work / "next.yaml").write_text(yaml.safe_dump({"model": {"init_args": {"teacher": yaml.safe_load(student)}}}))
    main(["check", "kd.yaml", "-c", "next.yaml"])

    main(["export", RUN, "--push", "hub", "--license", "mit"])
    hub = load_file(work / "hub/model.safetensors")
    assert all(torch.equal(hub[name], value) for name, value in exported.items())
    card = (work / "hub/README.md").read_text()
    assert "license: mit" in card
    assert "`mlp`, distilled from mlp on Digits with kdlab (CosineLogits, SoftTargets)." in card
    assert "| parameters | 1,210 |" in card


@pytest.mark.parametrize(("run", "said"), [("nowhere", "There is no run 'nowhere'"), (".", "has no checkpoint")])
def test_export_of_nothing(work: Path, capsys: pytest.CaptureFixture[str], run: str, said: str) -> None:  # noqa: F811
    with pytest.raises(SystemExit):
        main(["export", run])
    assert said in capsys.readouterr().err
    assert not list(work.glob("**/student.*"))


WITHOUT_KDLAB = """
import json, sys
sys.modules["kdlab"] = None  # import kdlab fails
import numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1])
about = json.loads(session.get_modelmeta().custom_metadata_map["kdlab"])
images = numpy.load(sys.argv[2])
logits = session.run(None, {"input": images})[0]
print(json.dumps([logits.argmax(1).tolist(), about["classes"], about["preprocessing"]["dtype"], about["run"]["run"]]))
"""


@pytest.mark.full
def test_a_run_is_exported_to_onnx_and_int8_and_profiled(
    work: Path,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("onnxscript")
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    main(["fit", "-c", "kd.yaml"])
    capsys.readouterr()
    main(["export", RUN, "--format", "onnx", "--with-preprocessing"])
    said = capsys.readouterr().out
    assert "student.onnx (" in said
    assert "agreement with the network 100.00 %" in said
    assert "teacher agreement" in said

    data = Digits(batch_size=128, train_size=256)
    data.setup()
    batch = next(iter(data.val_dataloader()))
    network = mlp(64, [16], 10, weights=f"{RUN}/checkpoints/last.ckpt").eval()
    with torch.no_grad():
        right = network(data.prepare(batch).inputs).argmax(1)
    numpy.save(work / "images.npy", batch.inputs.numpy())
    (work / "load.py").write_text(WITHOUT_KDLAB)
    command = [sys.executable, "load.py", f"{RUN}/student.onnx", "images.npy"]
    loaded = subprocess.run(command, capture_output=True, text=True, check=True, cwd=work).stdout
    assert json.loads(loaded) == [right.tolist(), [], "uint8", "version_0"]

    main(["export", RUN, "--format", "onnx", "--int8", "--calibrate", "200", "--points", "3"])
    weights = onnx.load(work / RUN / "student.int8.onnx").graph.initializer
    assert any(
        tensor.data_type == onnx.TensorProto.INT8 and list(tensor.dims) in ([64, 16], [16, 64]) for tensor in weights
    )

    monkeypatch.setattr("kdlab.export.timing.SECONDS", 0.0)
    capsys.readouterr()
    files = [f"{RUN}/student.onnx", f"{RUN}/student.int8.onnx"]
    main(["profile", RUN, *files, "--teacher", "--rounds", "1", "--out", "profile"])
    assert "p50 / p95 of a call in ms" in capsys.readouterr().out
    with (work / "profile/profile.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == ["teacher", RUN, "student.onnx", "student.int8.onnx"]
    assert {row["parameters"] for row in rows} == {str(64 * 16 + 16 + 160 + 10)}
    assert {row["flops"] for row in rows} == {str(2 * (64 * 16 + 160))}
    accuracy = float((right == batch.target).float().mean())
    if len(batch.target) == len(data.val_dataloader().dataset):  # type: ignore[arg-type]
        assert [float(row["accuracy"]) for row in rows[1:3]] == pytest.approx([accuracy] * 2)
    assert float(rows[0]["retention"]) == 1
    assert (work / "profile/profile.md").read_text().startswith("| network | runtime |")
    assert (work / "profile/profile.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.full
def test_profile_shows_the_teacher_images_as_it_was_trained_to(
    work: Path,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = {"model": {"init_args": {"teacher_preprocessing": {"mean": [0.9], "std": [0.1]}}}}
    (work / "own.yaml").write_text(yaml.safe_dump(own))
    save_file(mlp(64, [16], 10).state_dict(), work / "teacher.safetensors")
    main(["fit", "-c", "kd.yaml", "-c", "own.yaml", "--model.teacher.weights=teacher.safetensors"])
    monkeypatch.setattr("kdlab.export.timing.SECONDS", 0.0)
    main(["profile", RUN, "--teacher", "--rounds", "1", "--out", "profile"])
    with (work / "profile/profile.csv").open() as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    pixels, labels = Digits().read(train=False)
    with torch.no_grad():
        logits = mlp(64, [16], 10, weights="teacher.safetensors")((pixels / 255 - 0.9) / 0.1)
    accuracy = float((logits.argmax(1) == labels).double().mean())
    assert float(rows["teacher"]["accuracy"]) == pytest.approx(accuracy)
    assert float(rows["teacher"]["agreement"]) == 1

    (work / "other.py").write_text(OTHER)
    main(["fit", "-c", "kd.yaml", "--data=other.Other", "--data.train_size=256"])
    with pytest.raises(SystemExit):
        main(["profile", RUN, "runs/version_1", "--rounds", "1"])
    assert "'runs/version_1' takes images normalized with mean [0.35] and std [0.375]" in capsys.readouterr().err


OTHER = """
from kdlab.data import Digits


class Other(Digits):
    def __init__(self, **options):
        super().__init__(**options)
        self.mean, self.std = [0.35], [0.375]
"""
BACKBONE = """
from torch import nn


class Backbone(nn.Module):
    num_classes = 0
    pretrained_cfg = {"mean": (0.5, 0.25, 0.5), "std": (0.125, 0.25, 0.5), "input_size": (3, 12, 12)}

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, images):
        return self.conv(images).mean((2, 3))
"""


@pytest.mark.full
def test_an_exported_backbone_normalizes_as_it_was_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "backbone.py").write_text(BACKBONE)
    (tmp_path / "photos").mkdir()
    for number in range(12):
        pixels = numpy.random.default_rng(number).integers(0, 256, (16, 16, 3), numpy.uint8)
        Image.fromarray(pixels).save(tmp_path / f"photos/{number}.png")
    network = "backbone.Backbone"
    model = ["--model=kdlab.Distiller", f"--model.student={network}", f"--model.teacher={network}"]
    model += ["--model.teacher_preprocessing=own", "--model.knowledge.hint.loss=kdlab.losses.CosineSmoothL1"]
    data = ["--data=kdlab.data.UnlabeledImages", "--data.root=photos", "--data.validation=4", "--data.batch_size=4"]
    run = ["--trainer.max_epochs=1", "--trainer.accelerator=cpu", *QUIET]
    main(["fit", *model, *data, *run])
    trained = trained_run(Path(RUN))
    assert trained.normalization == ([0.5, 0.25, 0.5], [0.125, 0.25, 0.5])
    (teacher,) = trained.module.teacher.frozen  # type: ignore[union-attr]
    assert tuple(map(list, teacher.normalized)) == trained.normalization


@pytest.mark.full
def test_a_wrong_file_ends_with_status_3(
    work: Path,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    main(["fit", "-c", "kd.yaml"])
    write = FORMATS["onnx"].write

    def broken(network: Any, example: Any, path: Path, metadata: Any) -> None:
        write(network, example, path, metadata)
        model = onnx.load(path)
        weight = max(model.graph.initializer, key=lambda one: len(one.raw_data))
        weight.raw_data = (
            bytes([weight.raw_data[0] ^ 1, weight.raw_data[1], weight.raw_data[2], 0x42]) + weight.raw_data[4:]
        )
        onnx.save(model, path)

    monkeypatch.setitem(FORMATS, "onnx", FORMATS["onnx"]._replace(write=broken))
    with pytest.raises(SystemExit) as ended:
        main(["export", RUN, "--format", "onnx"])
    assert ended.value.code == 3
    assert "student.onnx is not the network: outputs differ at batch" in capsys.readouterr().err
    assert [path.name for path in (work / RUN).glob("student*")] == ["student.failed.onnx"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--int8"], "--int8 is for a format with a program"),
        (["--data.root=x"], "--data.root=x is for a format with a program"),
        (["--format", "torch", "--int8"], "The format 'torch' has no int8"),
        (["--format", "onyx"], "onyx"),
        (["--format", "torch", "--calibrate", "0"], "--calibrate is at least 1"),
        (["--format", "torch"], "There is no run 'nowhere'"),
    ],
)
def test_options_of_export_that_do_not_fit(
    work: Path,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    said: str,
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["export", "nowhere", *options])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.full
def test_a_student_of_quantization_aware_distillation_is_exported(work: Path) -> None:  # noqa: F811
    pytest.importorskip("onnxscript")
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    student = {"class_path": "kdlab.models.fake_quantized", "init_args": {"network": MLP}}
    (work / "qat.yaml").write_text(yaml.safe_dump({"model": {"init_args": {"student": student}}}))
    main(["fit", "-c", "kd.yaml", "-c", "qat.yaml"])
    state = torch.load(work / RUN / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    ranges = {name: value for name, value in state.items() if name.endswith("input_range")}
    assert len(ranges) == 2
    assert all(value[1] > value[0] for value in ranges.values())
    main(["export", RUN, "--format", "onnx", "--int8", "--calibrate", "200", "--points", "5"])
    types = {tensor.data_type for tensor in onnx.load(work / RUN / "student.int8.onnx").graph.initializer}
    assert onnx.TensorProto.INT8 in types
    main(["export", RUN])
    assert yaml.safe_load((work / RUN / "student.yaml").read_text())["class_path"] == "kdlab.models.fake_quantized"
