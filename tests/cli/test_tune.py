"""tune: settings in alternation, the table, the config that is laid over the recipe, and what is refused."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from kdlab.cli import main
from kdlab.config import tuning
from kdlab.config.lightning_cli import resolve
from kdlab.config.short_fit import Fit
from kdlab.config.tuning import BATCH, COMPILE, IN_MEMORY, LAST, PRECISION, WORKERS, Tuning
from kdlab.errors import InputError
from tests.config.test_lightning_cli import RECIPE, work  # noqa: F401

CONV = '''\
"""A student with a convolution."""

from torch import nn



def conv_net(num_classes: int = 10) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, num_classes))
'''
LONG = "--trainer.max_epochs=20"
CALL = ["tune", "kd.yaml", LONG, "--steps=3", "--rounds=1"]


@pytest.fixture
def recipe(work: Path) -> Path:  # noqa: F811
    """A recipe whose student has a convolution."""
    (work / "conv.py").write_text(CONV)
    content = yaml.safe_load((work / "kd.yaml").read_text())
    content["model"]["init_args"]["student"] = {"class_path": "conv.conv_net"}
    for knowledge in content["model"]["init_args"]["knowledge"].values():
        knowledge.pop("student_layers", None), knowledge.pop("teacher_layers", None)
    content["model"]["init_args"]["knowledge"].pop("mine", None)
    (work / "kd.yaml").write_text(yaml.safe_dump(content))
    return work


@pytest.mark.full
def test_the_config_is_laid_over_the_recipe(recipe: Path, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(tuning, "supports", lambda *_: True)
    monkeypatch.setenv("COLUMNS", "200")
    main(CALL)
    shown = " ".join(capsys.readouterr().out.split())
    assert "expected" not in shown  # no setting is refused by the parser
    for text in ("samples/s", "peak MB", "the recipe as it is", "channels_last=true", "precision=bf16-mixed"):
        assert text in shown
    text = (recipe / "tuned.yaml").read_text()
    assert "kdlab fit -c kd.yaml --trainer.max_epochs=20 -c tuned.yaml" in text
    written = yaml.safe_load(text)
    assert written["trainer"].keys() == {"precision"}
    assert written["model"]["init_args"].keys() == {"channels_last"}
    resolved = resolve(["-c", "kd.yaml", "-c", "tuned.yaml"])
    assert resolved["model"]["init_args"]["channels_last"] == written["model"]["init_args"]["channels_last"]
    assert resolved["trainer"]["precision"] == written["trainer"]["precision"]
    assert not (recipe / "runs").exists()


def given(monkeypatch: Any, seconds: Any, losses: Any = lambda options: 1.0, **facts: Any) -> list[dict[str, Any]]:
    """Let fits take given times; returns the options of the timed ones, in order."""
    order: list[dict[str, Any]] = []
    options = {"batch_size": 32, **facts.pop("options", {})}
    config = {"trainer": {"precision": "32-true"}, "model": {"init_args": {}}, "data": {"init_args": options}}
    known = {"config": config, "device": torch.device("cpu"), "has_images": True, "streams": False, **facts}

    def fit(self: Tuning, options: Any, steps: int) -> Fit:
        self._facts = known
        if steps > 1:
            order.append(dict(options))
        return Fit(seconds(options), 1e6, losses(options))

    monkeypatch.setattr(Tuning, "_fit", fit)
    monkeypatch.setattr(tuning, "supports", lambda *_: True)
    return order


def test_settings_alternate_and_the_fastest_is_chosen(monkeypatch: Any) -> None:
    times = {(): 1.0, (LAST,): 0.8, (PRECISION,): 0.9, (LAST, PRECISION): 0.7}
    order = given(monkeypatch, lambda options: times[tuple(sorted(options, reverse=False))] if options else 1.0)
    tuning = Tuning([], rounds=2)
    best = tuning.run()
    assert best.options == {LAST: True, PRECISION: "bf16-mixed"}
    assert best.speed == pytest.approx(1 / 0.7)
    assert len(order) == 1 + 2 * 4
    assert order[1:5] == order[:4:-1]  # forward, then backward
    assert tuning.overlay(best) == {
        "model": {"init_args": {"channels_last": True}},
        "trainer": {"precision": "bf16-mixed"},
    }
    assert tuning.overlay(tuning.settings[0])["trainer"] == {"precision": "32-true"}


def test_a_setting_with_another_loss_is_not_chosen(monkeypatch: Any) -> None:
    given(
        monkeypatch,
        lambda options: 0.5 if PRECISION in options else 1.0,
        lambda options: 1.06 if PRECISION in options else 1.0,
    )
    tuning = Tuning([])
    assert tuning.run().options == {}
    refused = [setting.refused for setting in tuning.settings if setting.refused]
    assert refused == ["the loss differs by 6.0 %"] * 2
    assert Tuning([], tolerance=0.07).run().options == {PRECISION: "bf16-mixed"}


def test_what_is_faster_by_less_than_two_percent_is_not_chosen(monkeypatch: Any) -> None:
    given(monkeypatch, lambda options: 0.985 if options else 1.0)
    assert Tuning([]).run().options == {}


def test_what_fails_is_noted_and_left(monkeypatch: Any) -> None:
    def seconds(options: Any) -> float:
        if COMPILE in options:
            raise RuntimeError("no compiler\nat line 3")
        return 1.0

    given(monkeypatch, seconds)
    tuning = Tuning([])
    assert tuning.run(compile=True).options == {}
    assert tuning.settings[-1].refused == "no compiler"


def test_workers_are_tried_where_data_is_streamed(monkeypatch: Any) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8))
    streamed = {"options": {"num_workers": 0, "in_memory": None}, "streams": True}
    given(monkeypatch, lambda options: 1 / (1 + options.get(WORKERS, 0)), **streamed)
    tuning = Tuning([])
    assert tuning.run().options == {WORKERS: 8}
    assert [one.options[WORKERS] for one in tuning.settings if WORKERS in one.options] == [4, 8]
    assert any(IN_MEMORY in one.options for one in tuning.settings)
    given(monkeypatch, lambda options: 1.0, **{**streamed, "streams": False})
    tuning = Tuning([])
    tuning.run()
    assert not any(WORKERS in one.options for one in tuning.settings)


@pytest.mark.parametrize("limit", [64, 256])
def test_batches_grow_until_one_fails(limit: int, monkeypatch: Any) -> None:
    def seconds(options: Any) -> float:
        size = options.get(BATCH, 32)
        if size > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 1 / size

    given(monkeypatch, seconds, has_images=False)
    tuning = Tuning([])
    assert tuning.run(batch_size=True).options == {BATCH: limit}
    assert tuning.settings[-1].refused == "out of memory"
    assert tuning.settings[-2].difference is None
    assert Tuning([]).run().options == {}  # only if asked


def test_a_file_is_not_replaced_unless_told(recipe: Path, capsys: Any, monkeypatch: Any) -> None:
    (recipe / "tuned.yaml").write_text("mine")
    with pytest.raises(SystemExit):
        main(CALL)
    assert "'tuned.yaml' exists: choose another file with --out, or give --overwrite" in capsys.readouterr().err
    assert (recipe / "tuned.yaml").read_text() == "mine"
    monkeypatch.setattr(Tuning, "run", lambda *_: (_ for _ in ()).throw(InputError("it ran")))
    with pytest.raises(SystemExit):
        main([*CALL, "--overwrite"])
    assert "it ran" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--steps=0", "--steps is at least 1"),
        ("--rounds=0", "--rounds is"),
        ("--tolerance=0", "must be a positive number"),
    ],
)
def test_bad_options(option: str, message: str, recipe: Path, capsys: Any) -> None:
    with pytest.raises(SystemExit):
        main(["tune", "kd.yaml", option])
    assert message in capsys.readouterr().err


def test_a_fit_shows_time_memory_and_loss(recipe: Path) -> None:
    tuning = Tuning(["-c", "kd.yaml", LONG], steps=3)
    first, second = tuning._fit({}, 3), tuning._fit({BATCH: 16}, 3)
    assert 0 < first.seconds < 1
    assert first.memory is None or first.memory >= 0
    assert first.loss == tuning._fit({}, 3).loss  # the same steps again
    assert second.loss != first.loss
    assert len(tuning._data) == 1


def test_a_training_that_ends_too_soon_is_refused(recipe: Path) -> None:
    with pytest.raises(InputError, match="The training is over after 2 steps: give fewer --steps"):
        Tuning(["-c", "kd.yaml", "--trainer.max_steps=2"], steps=3)._fit({}, 3)
