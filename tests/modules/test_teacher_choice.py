"""A timed teacher: one choice for all processes of a run, for the run that continues it, and for runs that share it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from kdlab.config.first_step import without_timing
from kdlab.errors import InputError
from kdlab.members import TeacherCache, fast_choice
from kdlab.members.fast_options import PLAIN, Fast
from kdlab.modules import Distiller
from kdlab.modules.teacher_choice import FILE
from kdlab.studies.runs import _sharing
from tests.modules.tiny import digits, distiller, same, trainer, weights

LAST, FOLD = Fast(False, True), Fast(True, False)
ORDER = (PLAIN, LAST, FOLD, Fast())


def conv_teacher() -> nn.Module:
    torch.manual_seed(1)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))
    net[1].running_mean.uniform_(-1, 1)  # type: ignore[union-attr, operator]
    return net


def times(monkeypatch: Any, fastest: Fast | None) -> list[int]:
    """Let a timing find one option the fastest; ``None`` lets it fail. Returns the calls."""
    calls: list[int] = []

    def given(functions: Sequence[Any], *_: Any) -> list[list[float]]:
        assert fastest is not None, "timed again"
        calls.append(len(functions))
        best = [*Fast().combinations(torch.device("cpu"))].index(fastest)
        return [[0.5 if place == best else 1.0] for place in range(len(functions))]

    monkeypatch.setattr(fast_choice, "in_turns", given)
    return calls


def fitted(folder: Path, fast: Any = None, epochs: int = 1, ckpt: Any = None, **options: Any) -> tuple[Distiller, Path]:
    module = distiller(teacher=conv_teacher(), teacher_fast=fast or Fast(timed=True), **options)
    logger = pl.loggers.CSVLogger(folder, name="")
    keep = {"logger": logger, "enable_checkpointing": True, "default_root_dir": folder}
    trainer(epochs, **keep).fit(module, datamodule=digits(), ckpt_path=ckpt)
    return module, Path(logger.log_dir)


def teacher_of(module: Distiller) -> Any:
    assert module.teacher is not None
    return module.teacher.frozen[0]


@pytest.mark.parametrize("fastest", ORDER)
def test_the_choice_runs_and_is_in_the_runs_folder(fastest: Fast, tmp_path: Path, monkeypatch: Any) -> None:
    calls = times(monkeypatch, fastest)
    module, folder = fitted(tmp_path)
    assert teacher_of(module).used == fastest
    assert calls == [4]
    (entry,) = json.loads((folder / FILE).read_text()).values()
    assert entry["chosen"] == fastest.changes
    assert (entry["teacher"], entry["network"], entry["batch"], entry["device"]) == ("teacher", "Sequential", 32, "cpu")
    assert [row["of_plain"] for row in entry["candidates"]].count(0.5) == (fastest != PLAIN)


def test_a_timed_run_is_the_run_with_the_choice_by_hand(tmp_path: Path, monkeypatch: Any) -> None:
    times(monkeypatch, FOLD)
    assert same(weights(fitted(tmp_path)[0].student), weights(fitted(tmp_path, FOLD)[0].student))
    assert not same(weights(fitted(tmp_path)[0].student), weights(fitted(tmp_path, PLAIN)[0].student))


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_a_resumed_run_keeps_the_choice(tmp_path: Path, monkeypatch: Any) -> None:
    times(monkeypatch, FOLD)
    _, folder = fitted(tmp_path / "a")
    times(monkeypatch, None)
    (checkpoint,) = (folder / "checkpoints").iterdir()
    module, other = fitted(tmp_path / "b", epochs=2, ckpt=checkpoint)
    assert teacher_of(module).used == FOLD
    assert (other / FILE).read_text() == (folder / FILE).read_text()


def test_runs_share_a_named_file(tmp_path: Path, monkeypatch: Any) -> None:
    fast = Fast(timed=str(tmp_path / "shared" / "choices.json"))
    times(monkeypatch, LAST)
    first, _ = fitted(tmp_path, fast)
    times(monkeypatch, None)
    second, folder = fitted(tmp_path, fast)
    assert teacher_of(second).used == LAST
    assert same(weights(first.student), weights(second.student))
    assert json.loads((folder / FILE).read_text()) == json.loads(Path(str(fast.timed)).read_text())
    times(monkeypatch, FOLD)  # other options, another entry
    third, _ = fitted(tmp_path, Fast(tolerance=0.5, timed=fast.timed))
    assert teacher_of(third).used == FOLD
    assert len(json.loads(Path(str(fast.timed)).read_text())) == 2


def test_a_store_holds_the_outputs_of_one_choice(tmp_path: Path, monkeypatch: Any) -> None:
    def stores() -> int:
        return len([path for path in (tmp_path / "cache").iterdir() if path.is_dir()])

    def cache(name: str = "cache") -> TeacherCache:
        return TeacherCache(str(tmp_path / name))

    times(monkeypatch, FOLD)
    fitted(tmp_path, teacher_cache=cache())
    times(monkeypatch, None)  # runs with one cache share the choice
    fitted(tmp_path, teacher_cache=cache())
    fitted(tmp_path, FOLD, teacher_cache=cache())  # and the store, also with the choice by hand
    assert stores() == 1
    fitted(tmp_path, LAST, teacher_cache=cache())
    assert stores() == 2
    fitted(tmp_path, PLAIN, teacher_cache=cache())
    assert stores() == 3


def test_a_copy_that_is_refused_does_not_fill_the_store_of_the_copy(tmp_path: Path) -> None:
    for tolerance in (None, 1e-12):
        fast = Fast(tolerance=tolerance)
        module, _ = fitted(tmp_path, fast, teacher_cache=TeacherCache(str(tmp_path / "cache")))
        assert (teacher_of(module).used == PLAIN) is (tolerance is not None)
    assert len(list((tmp_path / "cache").iterdir())) == 2


@pytest.mark.parametrize("chosen", [{"folds": True}, {"precision": "int8"}, None])
def test_a_file_without_options_is_refused(chosen: Any, tmp_path: Path, monkeypatch: Any) -> None:
    times(monkeypatch, FOLD)
    path = tmp_path / "choices.json"
    fitted(tmp_path, Fast(timed=str(path)))
    content = json.loads(path.read_text())
    path.write_text(json.dumps({key: {**entry, "chosen": chosen} for key, entry in content.items()}))
    with pytest.raises(InputError, match=r"choices.json' holds no choice for 'teacher'"):
        fitted(tmp_path, Fast(timed=str(path)))


def test_without_a_folder_nothing_is_written(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    times(monkeypatch, FOLD)
    module = distiller(teacher=conv_teacher(), teacher_fast=Fast(timed=True))
    trainer(1).fit(module, datamodule=digits())
    assert teacher_of(module).used == FOLD
    assert not list(tmp_path.iterdir())


def test_nothing_is_timed_where_nothing_applies(monkeypatch: Any) -> None:
    times(monkeypatch, None)
    module = distiller(teacher_fast=Fast(timed=True))  # a perceptron without BatchNorm
    trainer(1).fit(module, datamodule=digits())
    assert teacher_of(module).used == PLAIN


def test_a_setup_that_trains_nothing_does_not_time(monkeypatch: Any) -> None:
    times(monkeypatch, None)
    module = distiller(teacher=conv_teacher(), teacher_fast=Fast(timed=True))
    without_timing(module)
    trainer(1).fit(module, datamodule=digits())
    assert teacher_of(module).used == Fast()


def test_timing_changes_no_random_state(tmp_path: Path, monkeypatch: Any) -> None:
    drops = nn.Sequential(conv_teacher(), nn.Dropout(0.5))
    ends = []
    for fast in (PLAIN, Fast(timed=True)):
        times(monkeypatch, PLAIN)
        torch.manual_seed(3)
        module = distiller(teacher=drops, teacher_fast=fast, student=nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))
        trainer(1).fit(module, datamodule=digits())
        ends.append((weights(module.student), torch.get_rng_state()))
    assert same(ends[0][0], ends[1][0])
    assert torch.equal(ends[0][1], ends[1][1])


@pytest.mark.full
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
def test_the_first_process_decides_for_all(tmp_path: Path, monkeypatch: Any) -> None:
    class Note(pl.Callback):
        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            changes = teacher_of(pl_module).used.changes
            (tmp_path / f"{trainer.global_rank}.json").write_text(json.dumps(changes))

    def given(functions: Sequence[Any], *_: Any) -> list[list[float]]:
        assert torch.distributed.get_rank() == 0, "timed in another process"
        return [[1.0], [1.0], [0.5], [1.0]]

    monkeypatch.setattr(fast_choice, "in_turns", given)
    module = distiller(teacher=conv_teacher(), teacher_fast=Fast(timed=True))
    trainer(1, strategy="ddp_fork", devices=2, callbacks=[Note()]).fit(module, datamodule=digits())
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first == second == Fast().combinations(torch.device("cpu"))[2].changes


def test_the_runs_of_a_study_share_one_file() -> None:
    fast = {"fold": True, "timed": True}
    config = {"teacher_fast": fast, "teacher": [{"init_args": {"fast": dict(fast)}}], "timed": True}
    shared = _sharing(config, "runs/teacher_fast.json")
    assert shared["teacher_fast"] == {"fold": True, "timed": "runs/teacher_fast.json"}
    assert shared["teacher"][0]["init_args"]["fast"]["timed"] == "runs/teacher_fast.json"
    assert shared["timed"] is True
    assert fast["timed"] is True
    assert _sharing({"fold": True, "timed": False}, "x") == {"fold": True, "timed": False}
