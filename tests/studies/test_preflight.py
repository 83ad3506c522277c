"""How long a run will take: from steps on few samples, or on whole batches where those are quick."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import yaml

from kdlab.cli.study_plan import plan
from kdlab.data import Digits
from kdlab.studies import preflight as trial
from kdlab.studies.preflight import SAMPLES, Estimate, Trials, resolve
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
        now += fixed + sample * (seen[-1] if seen else 0)
        return now

    monkeypatch.setattr(trial._Watch, "on_train_batch_start", start)
    monkeypatch.setattr(trial, "time", SimpleNamespace(perf_counter=clock))
    config = resolve([f"--config={yaml.safe_dump(RECIPE)}", f"--data.batch_size={batch}"])
    trials = Trials(tmp_path / "trials.json")
    assert trials.estimate(config).seconds == pytest.approx(wanted)
    assert seen == sizes
    assert trials.data(config).batch_size == batch  # type: ignore[attr-defined]
    assert Trials(tmp_path / "trials.json").estimate(config) == trials.estimate(config)


def test_an_estimate_has_the_start_of_each_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose clock moves where it is told: 5 s to read the data, 2 s an epoch."""
    now = 0.0

    def passes(seconds: float) -> None:
        nonlocal now
        now += seconds

    read = Digits.read
    monkeypatch.setattr(trial, "time", SimpleNamespace(perf_counter=lambda: now))
    monkeypatch.setattr(Digits, "read", lambda self, train: (passes(2.5), read(self, train))[1])
    monkeypatch.setattr(trial._Watch, "on_before_zero_grad", lambda *_: passes(0.5), raising=False)
    config = resolve([f"--config={yaml.safe_dump(RECIPE)}", "--data.batch_size=100"])  # 400 images: 4 steps
    estimate = Trials(tmp_path / "trials.json").estimate(config)
    assert (estimate.seconds, estimate.fixed) == (pytest.approx(4 * 0.5 * 100 / SAMPLES), 5.0)
    run = SimpleNamespace(key="a", name="a", epochs=3)
    done = SimpleNamespace(runs=[run, run], state=lambda run: "new", ledger=SimpleNamespace(path="ledger.csv"))
    _, summary = plan(cast(Any, done), {"a": Estimate(2.0, 0.0, 5.0)})
    real = 2 * (5 + 3 * 2)
    assert f"about {timedelta(seconds=real)} one after the other" in summary
    assert f"{timedelta(seconds=2 * 5)} of it are starts" in summary
