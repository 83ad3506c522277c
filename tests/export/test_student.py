"""student: which network of a config and of a checkpoint is the student."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from kdlab.errors import InputError
from kdlab.export.student import export, newest_checkpoint, student_in, student_of

A, B = ({"class_path": "kdlab.models.mlp", "init_args": {"hidden": [width], "weights": None}} for width in (4, 8))
EXITS = {"class_path": "kdlab.models.WithExits", "init_args": {"network": A}}


def config(**options: Any) -> dict[str, Any]:
    return {"model": {"class_path": "any.Module", "init_args": options}}


@pytest.mark.parametrize(
    ("content", "learner", "student"),
    [
        (config(student=A), None, A),
        (config(student="kdlab.models.mlp"), None, None),
        (config(networks={"a": A, "b": B}), None, A),
        (config(networks={"a": A, "b": B}, deploy="b"), None, B),
        (config(networks={"a": A, "b": B}, deploy="b"), "a", A),
        (config(networks={"a": A, "b": B}, deploy="average_b"), None, B),
        (config(networks={"a": A, "b": B}, deploy="ensemble"), None, None),
        (config(networks={"net": EXITS}, deploy="net_exit1"), None, A),
        (config(networks={"net": EXITS}), "net", EXITS),
        (config(), None, None),
        ({}, None, None),
        ({"model": None}, None, None),
    ],
)
def test_student_in_a_config(content: dict[str, Any], learner: str | None, student: Any) -> None:
    assert student_in(content, learner) == student


def test_student_of_a_checkpoint(tmp_path: Path) -> None:
    path, one, two = tmp_path / "last.ckpt", torch.tensor(1.0), torch.tensor(2.0)
    torch.save({"state_dict": {"student.fc": one, "losses.soft.fc": two}}, path)
    assert student_of(path) == {"fc": one}
    torch.save({"state_dict": {"networks.a.fc": one, "networks.b.fc": two}}, path)
    assert student_of(path, "b") == {"fc": two}
    with pytest.raises(InputError, match="deploys an ensemble, which is not one network: name one with --learner: 'a'"):
        student_of(path)
    with pytest.raises(InputError, match="has no learner 'c'; it has 'a', 'b'"):
        student_of(path, "c")
    torch.save({"state_dict": {"fc": one}}, path)
    with pytest.raises(InputError, match="holds no student"):
        student_of(path)


def test_the_newest_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no checkpoint to export from"):
        newest_checkpoint(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    for age, name in enumerate(("b", "c", "a")):
        path = tmp_path / f"checkpoints/{name}.ckpt"
        path.touch()
        os.utime(path, (100 - age, 100 - age))
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoints/b.ckpt"
    with pytest.raises(InputError, match="There is no run"):
        newest_checkpoint(tmp_path / "gone")


def test_export_writes_weights_and_config(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    torch.save({"state_dict": {"student.fc": torch.tensor([1.0, 2.0])}}, tmp_path / "checkpoints/last.ckpt")
    weights, none = export(tmp_path)
    assert (weights, none) == (tmp_path / "student.safetensors", None)
    assert load_file(weights)["fc"].tolist() == [1.0, 2.0]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config(student=A)))
    weights, written = export(tmp_path / "checkpoints/last.ckpt", tmp_path / "out")
    assert written is not None
    assert yaml.safe_load(written.read_text()) == {**A, "init_args": {**A["init_args"], "weights": str(weights)}}  # type: ignore[dict-item]
    with pytest.raises(InputError, match="exists already"):
        export(tmp_path)


@pytest.mark.parametrize("text", [b"model: {init_args: [", b"\xff\xfe\x00", b"model: *gone", b"[" * 5000])
def test_a_config_that_cannot_be_read(text: bytes, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_bytes(text)
    torch.save({"state_dict": {"student.weight": torch.ones(2)}}, tmp_path / "last.ckpt")
    with pytest.raises(InputError, match="cannot be read"):
        export(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml", "last.ckpt"]
