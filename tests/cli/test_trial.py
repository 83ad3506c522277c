"""How long a run will take: from steps on few samples, or on whole batches where those are quick."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from kdlab.cli import trial
from kdlab.cli.trial import SAMPLES, Trials, resolve
from tests.reproduce.test_real import RECIPE


@pytest.mark.parametrize(
    ("tick", "batch", "wanted"),
    [
        (0.01, 100, 4 * 0.01),  # what costs the same for any batch is not multiplied
        (0.25, 100, 4 * 0.25 * 100 / SAMPLES),
        (0.25, 25, 16 * 0.25),
        (0.01, 25, 16 * 0.01),
    ],
    ids=["quick", "slow", "slow and small", "quick and small"],
)
def test_an_epoch_is_as_long_as_its_steps(
    tick: float, batch: int, wanted: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(1000))
    monkeypatch.setattr(trial, "time", SimpleNamespace(perf_counter=lambda: tick * next(clock)))
    config = resolve([f"--config={yaml.safe_dump(RECIPE)}", f"--data.batch_size={batch}"])
    trials = Trials(tmp_path / "trials.json")
    assert trials.estimate(config).seconds == pytest.approx(wanted)
    assert trials.data(config).batch_size == batch  # type: ignore[attr-defined]
    assert Trials(tmp_path / "trials.json").estimate(config) == trials.estimate(config)
