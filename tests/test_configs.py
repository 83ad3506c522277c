"""Every shipped config builds and survives a dry batch."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kdlab.cli import main

ROOT = Path(__file__).parent.parent
DATA = os.environ.get("KDLAB_DATA")
needs_data = pytest.mark.skipif(DATA is None, reason="KDLAB_DATA does not name the folder with real data")
CIFAR = [f"--data=kdlab.data.ImageFolder", f"--data.root={DATA}/cifar100", "--data.train_size=200"]
KNOWLEDGE = sorted(path.stem for path in (ROOT / "configs/knowledge").glob("*.yaml"))


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@needs_data
@pytest.mark.parametrize("name", KNOWLEDGE)
def test_knowledge(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = ["check", str(ROOT / "configs/cifar100/distil.yaml"), "-c", str(ROOT / f"configs/knowledge/{name}.yaml")]
    main([*recipe, *CIFAR])
    assert "Loss terms" in capsys.readouterr().out


@needs_data
def test_plain_training(capsys: pytest.CaptureFixture[str]) -> None:
    main(["check", str(ROOT / "configs/cifar100/train.yaml"), "-c", str(ROOT / "configs/logger/wandb.yaml"), *CIFAR])
    assert "Loss terms" in capsys.readouterr().out
