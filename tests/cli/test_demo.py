"""demo: the table, the files, and the same numbers from the same seeds."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from kdlab.cli import main
from kdlab.data import Digits
from kdlab.models import mlp, resnet14

pytestmark = pytest.mark.full

TINY = ["demo", "--seeds=2", "--epochs=2"]


def test_demo_leaves_table_students_numbers_and_a_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    before = torch.random.get_rng_state()
    main(TINY)
    assert torch.equal(before, torch.random.get_rng_state())
    said = capfd.readouterr().out
    for part in (
        "parameters",
        "agreement",
        "retention",
        "student alone",
        "student distilled",
        "±",
        "19,210",
        "174,970",
    ):
        assert part in said
    with (tmp_path / "runs/demo/results.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["epoch"] == "2"]
    assert [row["network"] for row in rows] == ["teacher", *["student alone"] * 2, *["student distilled"] * 2]
    assert (tmp_path / "runs/demo/curves.png").read_bytes().startswith(b"\x89PNG")

    digits = Digits()
    digits.setup()
    batch = digits.prepare(next(iter(digits.test_dataloader())))
    networks = {"teacher": resnet14(10, 1, "runs/demo/teacher.safetensors"), "student distilled": mlp(64, [256], 10)}
    networks["student distilled"] = mlp(64, [256], 10, weights="runs/demo/student.safetensors")
    for name, network in networks.items():
        right = (network.eval()(batch.inputs).argmax(1) == batch.target).float().mean()
        row = next(row for row in rows if row["network"] == name and row["seed"] == "0")
        assert float(row["test_accuracy"]) == pytest.approx(float(right), abs=1e-6)

    main(TINY)  # a second run: a folder of its own, the same numbers to the last bit
    for name in ("results.csv", "student.safetensors", "teacher.safetensors"):
        assert (tmp_path / "runs/demo-2" / name).read_bytes() == (tmp_path / "runs/demo" / name).read_bytes()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--seeds=0"], "--seeds must be at least 1"),
        (["--epochs=-1"], "--epochs must be at least 1"),
        (["--seed=3x"], "--seed"),
        (["--out=file/demo"], "cannot be made"),
    ],
)
def test_mistakes_are_one_sentence(
    options: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as stop:
        main(["demo", *options])
    assert stop.value.code == 2
    assert said in capsys.readouterr().err
