"""Class paths of a config: what may be built, what is refused before it is imported or called."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from kdlab.config.class_paths import check_class_path, check_config
from kdlab.errors import InputError

OWN = """\
import pickle
from os import system
from torch.optim import SGD

def network(width):
    return object()

class Schedule:
    pass
"""


@pytest.mark.parametrize(
    "path",
    [
        *("kdlab.Distiller", "kdlab.Knowledge", "kdlab.models.mlp", "kdlab.data.Digits", "kdlab.modules.base.sgd"),
        *(
            "kdlab.schedules.Linear",
            "kdlab.teaching.Peers",
            "kdlab.teaching.TeacherCache",
            "kdlab.reproduce.record.Record",
        ),
        *("torch.nn.CrossEntropyLoss", "torch.optim.AdamW", "torch.optim.lr_scheduler.OneCycleLR"),
        *("torchvision.models.resnet18", "torchvision.models.get_model", "pytorch_lightning.cli.ReduceLROnPlateau"),
        *("pytorch_lightning.callbacks.EarlyStopping", "pytorch_lightning.loggers.WandbLogger"),
        *("pytorch_lightning.strategies.DDPStrategy", "kdlab.modules.checkpoint_io.AtomicCheckpointIO"),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_accepted(path: str) -> None:
    assert check_class_path(path)


def test_builders_of_timm_are_accepted() -> None:
    pytest.importorskip("timm")
    assert check_class_path("timm.create_model")


@pytest.mark.parametrize(
    "path",
    [
        *("os.system", "posix.system", "subprocess.Popen", "subprocess.call", "builtins.eval", "builtins.exec"),
        *("builtins.open", "pickle.loads", "shutil.rmtree", "pathlib.Path", "importlib.import_module"),
        *("runpy.run_path", "functools.partial", "operator.methodcaller", "ctypes.CDLL", "webbrowser.open"),
        *("torch.os.system", "torch.load", "torch.serialization.load", "torch.hub.load", "torch.jit.load"),
        *("torch.utils.cpp_extension.load", "torch.package.PackageImporter", "torch.multiprocessing.Process"),
        *("torch.save", "torch.from_file", "torch.compile", "numpy.load", "numpy.memmap", "numpy.save", "yaml.load"),
        *("kdlab.files.write_text", "kdlab.cli.main", "kdlab.config.lightning_cli.KdlabCLI"),
        *("kdlab.Distiller.load_from_checkpoint", "pytorch_lightning.LightningModule.load_from_checkpoint"),
        *("kdlab.export.student.export", "kdlab.models.checkpoint_reader.read_tensors"),
    ],
)  # fmt: skip
def test_refused(path: str) -> None:
    with pytest.raises(InputError):
        check_class_path(path)


def test_refused_before_it_is_imported() -> None:
    with pytest.raises(InputError, match="cannot name Python's own modules"):
        check_class_path("antigravity.webbrowser")
    assert "antigravity" not in sys.modules


def test_the_users_own_files_build_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_parts.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("network", "Schedule", "SGD"):
        assert check_class_path(f"own_parts.{name}")
    for name in ("system", "pickle.loads"):
        with pytest.raises(InputError):
            check_class_path(f"own_parts.{name}")


def test_every_part_of_a_config_is_checked() -> None:
    bad = {"class_path": "kdlab.files.write_text", "init_args": {}}
    with pytest.raises(InputError, match=r"model.init_args.knowledge.soft.loss: a config builds") as raised:
        check_config({"model": {"init_args": {"knowledge": {"soft": {"loss": bad}}}}})
    assert (raised.value.key, raised.value.value) == ("model.init_args.knowledge.soft.loss", "kdlab.files.write_text")
    with pytest.raises(InputError, match=r"trainer.callbacks: a config builds"):
        check_config({"trainer": {"callbacks": [[bad]]}})
    with pytest.raises(InputError, match=r"data.batch_size is 9.22e\+18: whole numbers have at most 64 bits"):
        check_config({"data": {"batch_size": 2**63}})
    check_config({"data": {"batch_size": 2**63 - 1, "shuffle": True, "lr": 1e30}})
