"""export: the student alone, under its own key names, out of a run or a checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from kdlab.cli import main
from kdlab.models import mlp
from tests.config.test_lightning_cli import work  # noqa: F401

RUN = "runs/version_0"


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


@pytest.mark.parametrize(("run", "said"), [("nowhere", "There is no run 'nowhere'"), (".", "has no checkpoint")])
def test_export_of_nothing(work: Path, capsys: pytest.CaptureFixture[str], run: str, said: str) -> None:  # noqa: F811
    with pytest.raises(SystemExit):
        main(["export", run])
    assert said in capsys.readouterr().err
    assert not list(work.glob("**/student.*"))
