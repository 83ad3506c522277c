"""A checkpoint that is damaged, of something else, or of a stranger stops a run before it begins, and runs no code."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

from kdlab import Distiller
from kdlab.cli import main
from kdlab.errors import InputError
from kdlab.modules.checkpoint_io import AtomicCheckpointIO, check_checkpoint
from tests.modules.tiny import digits, distiller, network, same, trainer, weights


class Code:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.folder / "ran"),)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run") / "last.ckpt"
    run = trainer(1)
    run.fit(distiller(), digits())
    run.save_checkpoint(path)
    return path


def spoiled(kind: str, good: Path, folder: Path) -> Path:
    """A file that looks like a checkpoint and is none."""
    path, raw = folder / "bad.ckpt", good.read_bytes()
    content = torch.load(good, weights_only=True)
    if kind == "flipped":  # one bit in the middle of the student's first matrix
        at = raw.index(content["state_dict"]["student.hidden.0.linear.weight"].numpy().tobytes()) + 1000
        path.write_bytes(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :])
        assert torch.load(path, weights_only=True).keys() == content.keys()  # torch does not notice
    elif kind == "truncated":
        path.write_bytes(raw[: len(raw) // 2])
    elif kind == "empty":
        path.touch()
    elif kind == "folder":
        path.mkdir()
    elif kind == "safetensors":
        save_file(content["state_dict"], path)
    elif kind == "plain pickle":
        path.write_bytes(pickle.dumps(Code(folder)))
    elif kind == "text":
        path.write_text("not a checkpoint")
    elif kind != "missing":
        changed: Any = {
            "code": {**content, "extra": Code(folder)},
            "weights file": content["state_dict"],
            "list": [content],
            "weights only": {x: content[x] for x in ("state_dict", "epoch", "pytorch-lightning_version")},
        }[kind]
        torch.save(changed, path)
    return path


MALFORMED = {
    "flipped": "checksum of .* is wrong",
    "truncated": "truncated or damaged",
    "empty": "is empty",
    "folder": "is a folder",
    "missing": "There is no checkpoint",
    "safetensors": "not a checkpoint of a run.*init_args.weights",
    "plain pickle": "not a checkpoint of a run",
    "text": "not a checkpoint of a run",
    "code": "runs no code from it",
    "weights file": "not a checkpoint of a run",
    "list": "not a checkpoint of a run",
    "weights only": "weights only",
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_malformed_checkpoints_are_named(kind: str, good: Path, tmp_path: Path) -> None:
    path = spoiled(kind, good, tmp_path)
    with pytest.raises(InputError, match=MALFORMED[kind]):
        check_checkpoint(path, resume=True)
    if kind != "weights only":
        with pytest.raises(InputError, match=MALFORMED[kind]):
            AtomicCheckpointIO().load_checkpoint(path)
    assert not (tmp_path / "ran").exists()


def test_a_plain_trainer_checks_too(good: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="checksum"):
        trainer(2).fit(distiller(), digits(), ckpt_path=spoiled("flipped", good, tmp_path))
    run = trainer(2)
    run.fit(distiller(), digits(), ckpt_path=good)
    assert run.global_step == 10


def test_a_users_checkpoint_plugin_stays() -> None:
    class Mine(AtomicCheckpointIO):
        pass

    mine = Mine()
    run = trainer(1, plugins=[mine], limit_train_batches=1)
    run.fit(distiller(), digits())
    assert run.strategy.checkpoint_io is mine


def test_a_checkpoint_of_another_network(good: Path) -> None:
    with pytest.raises(InputError, match=r"does not fit this Distiller: use the config\.yaml.*hidden"):
        trainer(2).fit(distiller(student=network(0, (17,))), digits(), ckpt_path=good)


def test_a_checkpoint_of_another_optimizer(good: Path) -> None:
    for options in ({"optimizer": torch.optim.Adam}, {"parameter_groups": {"student.fc": {"lr": 0.01}}}):
        with pytest.raises(InputError, match="of another optimizer"):
            trainer(2).fit(distiller(**options), digits(), ckpt_path=good)


def test_load_from_checkpoint_says_the_way(good: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"load_from_checkpoint\(path, student=\.\.\.,.*config\.yaml"):
        Distiller.load_from_checkpoint(good)
    with pytest.raises(InputError, match="does not fit this Distiller: use the config"):
        Distiller.load_from_checkpoint(good, student=network(0, (17,)))
    content = torch.load(good, weights_only=True)["state_dict"]
    right = {name: value for name, value in content.items() if name.startswith("student.")}
    made = distiller()
    loaded = Distiller.load_from_checkpoint(good, student=made.student, knowledge=made.knowledge, teacher=network(1))
    assert same({f"student.{name}": value for name, value in weights(loaded.student).items()}, right)
    with pytest.raises(InputError, match="checksum"):
        Distiller.load_from_checkpoint(spoiled("flipped", good, tmp_path), student=network())


def test_trusted_checkpoints_may_hold_code(good: Path, tmp_path: Path) -> None:
    path = spoiled("code", good, tmp_path)
    trainer(2).fit(distiller(), digits(), ckpt_path=path, weights_only=False)
    assert (tmp_path / "ran").exists()  # by the user's own word


CONFIG = {
    "trainer": {"accelerator": "cpu", "max_epochs": 1, "enable_progress_bar": False, "enable_model_summary": False},
    "model": {
        "class_path": "kdlab.Distiller",
        "init_args": {
            "student": {
                "class_path": "kdlab.models.mlp",
                "init_args": {"in_features": 64, "hidden": [16], "num_classes": 10},
            }
        },
    },
    "data": {"class_path": "kdlab.data.Digits", "init_args": {"batch_size": 64, "train_size": 128}},
}


@pytest.mark.full
@pytest.mark.filterwarnings("ignore")
def test_the_command_stops_before_it_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("kd.yaml").write_text(yaml.safe_dump(CONFIG))
    main(["fit", "-c", "kd.yaml", "--model.student.weights=null"])  # not the text "None"
    good = tmp_path / "runs/version_0/checkpoints/last.ckpt"
    before = sorted(tmp_path.rglob("*"))
    resume = ["fit", "-c", "kd.yaml", "--trainer.max_epochs=2"]
    for kind, message in {"flipped": "checksum", "empty": "is empty", "code": "no code", "folder": "folder"}.items():
        folder = tmp_path.parent / f"{tmp_path.name}-{kind}"
        folder.mkdir()
        with pytest.raises(SystemExit) as stop:
            main([*resume, f"--ckpt_path={spoiled(kind, good, folder)}"])
        assert stop.value.code == 2
        said = capsys.readouterr().err
        assert "ckpt_path: " in said
        assert message in said
        assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(SystemExit):
        main([*resume, f"--ckpt_path={good}", "--model.student.hidden=[17]"])
    assert "'hidden.0.linear.weight' is (16, 64), here (17, 64)" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before
    content = torch.load(good, weights_only=True)  # a stranger's hyperparameters change no config
    torch.save({**content, "hyper_parameters": {"task_weight": 0.0}}, good)
    main(["test", "-c", "kd.yaml", f"--ckpt_path={good}"])
    main([*resume, f"--ckpt_path={good}"])
    config = yaml.safe_load(max(tmp_path.glob("runs/version_*/config.yaml")).read_text())
    assert config["model"]["init_args"]["task_weight"] == 1.0


FULL = """
import resource, signal, sys, torch
from pathlib import Path
from kdlab.errors import InputError
from kdlab.modules.checkpoint_io import AtomicCheckpointIO
path = Path(sys.argv[1])
AtomicCheckpointIO().save_checkpoint({"state_dict": {}, "pytorch-lightning_version": "2.6.0"}, path)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    AtomicCheckpointIO().save_checkpoint({"state_dict": {"w": torch.ones(100_000)}}, path)
except InputError as error:
    print(error)
"""


@pytest.mark.full
def test_a_full_disk_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    done = subprocess.run([sys.executable, "-c", FULL, str(path)], capture_output=True, text=True, check=True)
    assert "cannot be written (File too large), and is what it was before" in done.stdout
    assert AtomicCheckpointIO().load_checkpoint(path)["state_dict"] == {}
    assert [each.name for each in tmp_path.iterdir()] == ["last.ckpt"]
