"""How many runs happen at once: what is refused, and what is chosen from measurements."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kdlab.errors import InputError
from kdlab.studies import packed_runs
from kdlab.studies.packed_runs import check_pack, chosen, measure
from kdlab.studies.preflight import Estimate
from kdlab.studies.runs import Run
from tests.studies.small import runs


@pytest.fixture
def some(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    monkeypatch.setattr(packed_runs, "processors", lambda: 4)
    monkeypatch.setattr(packed_runs.torch.cuda, "is_available", lambda: False)
    return runs(tmp_path)


def with_trainer(some: list[Run], **options: Any) -> list[Run]:
    for run in some:
        run.config["trainer"].update(options)
    return some


@pytest.mark.parametrize(
    ("pack", "launcher", "options", "message"),
    [
        (0, "local", {}, "at least 1, or auto, not 0"),
        (-2, "local", {}, "at least 1"),
        (2, "ray", {}, "--cpus_per_run"),
        ("auto", "ray", {}, "--cpus_per_run"),
        (5, "local", {}, "more than the 4 processors"),
        (2, "local", {"devices": 2}, "--trainer.devices=1"),
        (2, "local", {"devices": [0, 1]}, "--trainer.devices=1"),
        (2, "local", {"devices": "0,1"}, "--trainer.devices=1"),
        ("auto", "local", {"num_nodes": 2}, "--trainer.devices=1"),
    ],
)
def test_what_cannot_be_packed_is_refused(
    pack: Any, launcher: str, options: dict[str, Any], message: str, some: list[Run]
) -> None:
    with pytest.raises(InputError, match=message) as refused:
        check_pack(pack, launcher, with_trainer(some, **options), {})
    assert str(refused.value).count(". ") == 0, "one sentence"


@pytest.mark.parametrize("options", [{}, {"devices": 1}, {"devices": "1"}, {"devices": [3]}, {"devices": -1}])
def test_what_fits_may_be_packed(options: dict[str, Any], some: list[Run]) -> None:
    for pack in (1, 2, 4, "auto"):
        check_pack(pack, "local", with_trainer(some, **options), {})  # type: ignore[arg-type]
    check_pack(1, "ray", some, {})


def test_all_devices_are_several_where_there_are(some: list[Run], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_runs.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(packed_runs.torch.cuda, "device_count", lambda: 2)
    with pytest.raises(InputError, match=r"--trainer\.devices=1"):
        check_pack(2, "local", some, {})
    check_pack("auto", "local", with_trainer(some, devices=1), {})


def test_runs_that_do_not_fit_the_memory_are_refused(some: list[Run], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_runs, "_memory", lambda: 8.0 * 2**30)
    estimates = {run.key: Estimate(1.0, size * 2**30, 1.0) for run, size in zip(some, (1, 3, 1, 1, 1), strict=True)}
    check_pack(2, "local", some, estimates)
    with pytest.raises(InputError, match=r"take 9\.0 GiB of the 8\.0 GiB"):
        check_pack(3, "local", some, estimates)


@pytest.mark.parametrize(
    ("rates", "tried", "best"),
    [
        ({1: 10.0, 2: 18.0, 4: 30.0, 8: 31.0}, [1, 2, 4], 4),  # 4 processors
        ({1: 10.0, 2: 10.3, 4: 30.0}, [1, 2], 1),  # within noise
        ({1: 10.0, 2: 18.0, 4: 0.0}, [1, 2, 4], 2),  # the third does not fit
        ({1: 0.0, 2: 18.0}, [1], 0),
    ],
)
def test_more_runs_are_tried_while_they_are_faster(
    rates: dict[int, float], tried: list[int], best: int, some: list[Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    monkeypatch.setattr(packed_runs, "_rate", lambda config, count, seconds: (seen.append(count), rates[count])[1])
    measured = measure(some[0])
    assert seen == tried
    assert chosen(measured) == best
