"""How long a run will take: from steps on few samples, or on whole batches where those are quick."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from kdlab.studies import preflight as trial
from kdlab.studies.preflight import SAMPLES, Trials, resolve
from tests.studies.test_real import RECIPE

pytestmark = pytest.mark.full


@pytest.mark.parametrize(
    ("fixed", "sample", "batch", "wanted", "sizes"),
    [
        (0.01, 0.0, 100, 4 * 0.01, [SAMPLES] * 4 + [100] * 4),  # what costs the same for any batch is not multiplied
        (0.0, 0.002, 100, 4 * 0.2, [SAMPLES] * 4 + [100] * 4),
        (0.25, 0.0, 100, 4 * 0.25 * 100 / SAMPLES, [SAMPLES] * 4),
        (0.25, 0.0, 25, 16 * 0.25, [25] * 4),
        (0.01, 0.0, 25, 16 * 0.01, [25] * 4),
    ],
    ids=["quick", "quick samples", "slow", "slow and small", "quick and small"],
)
def test_an_epoch_is_as_long_as_its_steps(
    fixed: float,
    sample: float,
    batch: int,
    wanted: float,
    sizes: list[int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[int] = []
    now = 0.0
    started = trial._Watch.on_train_batch_start

    def start(self: Any, trainer: Any, module: Any, given: Any, *rest: Any) -> None:
        seen.append(len(given.target))
        started(self, trainer, module, given, *rest)

    def clock() -> float:
        nonlocal now
        now += fixed + sample * seen[-1]
        return now

    monkeypatch.setattr(trial._Watch, "on_train_batch_start", start)
    monkeypatch.setattr(trial, "time", SimpleNamespace(perf_counter=clock))
    config = resolve([f"--config={yaml.safe_dump(RECIPE)}", f"--data.batch_size={batch}"])
    trials = Trials(tmp_path / "trials.json")
    assert trials.estimate(config).seconds == pytest.approx(wanted)
    assert seen == sizes
    assert trials.data(config).batch_size == batch  # type: ignore[attr-defined]
    assert Trials(tmp_path / "trials.json").estimate(config) == trials.estimate(config)
