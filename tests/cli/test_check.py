"""check: one dry batch, its tables, its warnings, and nothing written."""

from __future__ import annotations

import functools
import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import yaml

from kdlab.cli import main
from tests.config.test_lightning_cli import MLP, RECIPE, work  # noqa: F401


def test_check_shows_parts_taps_terms_and_memory(work: Path, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    main(
        ["check", "kd.yaml", "--model.knowledge.soft.weight=0.5", '--model.knowledge.mine.student_layers=["hidden.0"]']
    )
    said = " ".join(capsys.readouterr().out.split())
    weights = 64 * 16 + 16 + 16 * 10 + 10
    assert f"student │ MLP │ {weights:,} │ {weights:,}" in said
    assert f"teacher │ MLP (frozen) │ {weights:,} │ 0" in said
    assert "student │ hidden.0 │ 16" in said
    assert "teacher │ hidden.0 │ 16" in said
    assert "soft │ SoftTargets" in said
    assert "activations of 128 samples" in said
    assert "The teacher is right on" in said, "an untrained teacher has to be noticed before training"
    assert not (work / "runs").exists()


def test_check_refuses_what_fit_refuses(work: Path, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    with pytest.raises(SystemExit):
        main(["check", "kd.yaml", '--model.knowledge.soft.student_layers=["hiden.0"]'])
    assert "has no layer 'hiden.0'; the nearest names are 'hidden.0'" in capsys.readouterr().err


@pytest.mark.full
def test_memory_counts_adam_twice_as_sgd_with_momentum(work: Path, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    wide = "--model.student.hidden=[4096]"
    main(["check", "kd.yaml", wide])
    sgd = capsys.readouterr().out.split("optimizer ")[1].split(",")[0]
    main(["check", "kd.yaml", wide, "--model.optimizer=torch.optim.AdamW"])
    adam = capsys.readouterr().out.split("optimizer ")[1].split(",")[0]
    assert float(adam) == pytest.approx(2 * float(sgd), rel=0.05)
    assert float(sgd) == pytest.approx((64 * 4096 + 4096 + 4096 * 10 + 10) * 4 / 2**20, abs=0.06)


WEIGHTS = 64 * 16 + 16 + 16 * 10 + 10


def cotraining(work: Path, **model: Any) -> None:  # noqa: F811
    """A config of networks that learn together, in place of the fixture's own."""
    given = {"networks": {"a": MLP, "b": MLP}, "knowledge": {"soft": {"loss": "kdlab.losses.SoftTargets"}}, **model}
    recipe = {**RECIPE, "model": {"class_path": "kdlab.CoTrainer", "init_args": given}}
    (work / "kd.yaml").write_text(yaml.safe_dump(recipe))


@pytest.mark.parametrize(
    ("model", "row"),
    [
        ({}, "Teaching: Peers."),
        (
            {"teaching": {"class_path": "kdlab.teaching.MovingAverage"}, "deploy": "average_b"},
            f"average_b │ MLP (EMA) │ {WEIGHTS:,} │ 0",
        ),
    ],
)
def test_check_shows_networks_that_learn_together(
    model: dict[str, Any],
    row: str,
    work: Path,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    cotraining(work, **model)
    main(["check", "kd.yaml"])
    said = " ".join(capsys.readouterr().out.split())
    assert f"a │ MLP │ {WEIGHTS:,} │ {WEIGHTS:,}" in said
    assert row in said
    assert "b │ embedding │ 16" in said
    assert "soft │ SoftTargets" in said
    assert "Students: a, b." in said
    assert f"Deployed: {model.get('deploy', 'a')}." in said
    assert not (work / "runs").exists()


@pytest.mark.parametrize(
    ("model", "warned"),
    [
        ({}, "Peers is given but no knowledge: every student learns from labels alone."),
        ({"networks": {"net": MLP}}, ""),
    ],
)
def test_check_warns_of_networks_that_teach_each_other_nothing(
    model: dict[str, Any],
    warned: str,
    work: Path,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    cotraining(work, **{"knowledge": {}, **model})
    main(["check", "kd.yaml"])
    said = " ".join(capsys.readouterr().out.split())
    assert warned in said
    assert ("no knowledge" in said) is bool(warned)


def test_check_leaves_no_trainer_in_memory(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setattr(pl.Trainer, "__init__", noting(pl.Trainer.__init__, trainers := []))
    gc.disable()
    try:
        main(["check", "kd.yaml"])
        (trainer,) = trainers
        assert trainer() is None
    finally:
        gc.enable()


def noting(method: Callable[..., None], references: list[weakref.ref[Any]]) -> Callable[..., None]:
    """The method, with a weak reference to every object that it is called on."""

    @functools.wraps(method)
    def noted(self: Any, *args: Any, **options: Any) -> None:
        references.append(weakref.ref(self))
        method(self, *args, **options)

    return noted
