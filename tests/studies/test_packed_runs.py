"""How many runs happen at once: what is refused, and what is chosen from measurements."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kdlab.cli.study_commands import reproduce
from kdlab.errors import InputError
from kdlab.studies import packed_runs
from kdlab.studies.packed_runs import check_pack, check_room, chosen, measure
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
    ("pack", "launcher", "message"),
    [
        (0, "local", "at least 1, or auto, not 0"),
        (-2, "local", "at least 1"),
        (2, "ray", "--cpus_per_run"),
        ("auto", "ray", "--cpus_per_run"),
    ],
)
def test_a_pack_that_cannot_be_is_refused_with_nothing_written(
    pack: Any, launcher: Any, message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message) as refused:
        reproduce(Path("smoke"), [], runs=tmp_path, pack=pack, launcher=launcher)
    assert str(refused.value).count(". ") == 0, "one sentence"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("pack", "options", "message"),
    [
        (5, {}, "more than the 4 processors"),
        (2, {"devices": 2}, "--trainer.devices=1"),
        (2, {"devices": [0, 1]}, "--trainer.devices=1"),
        (2, {"devices": "0,1"}, "--trainer.devices=1"),
        ("auto", {"num_nodes": 2}, "--trainer.devices=1"),
    ],
)
def test_what_cannot_be_packed_is_refused(pack: Any, options: dict[str, Any], message: str, some: list[Run]) -> None:
    with pytest.raises(InputError, match=message) as refused:
        check_room(pack, with_trainer(some, **options), {})
    assert str(refused.value).count(". ") == 0, "one sentence"


@pytest.mark.parametrize("options", [{}, {"devices": 1}, {"devices": "1"}, {"devices": [3]}, {"devices": -1}])
def test_what_fits_may_be_packed(options: dict[str, Any], some: list[Run]) -> None:
    for pack in (1, 2, 4, "auto"):
        check_room(pack, with_trainer(some, **options), {})  # type: ignore[arg-type]
    check_pack(1, "ray")


def test_all_devices_are_several_where_there_are(some: list[Run], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_runs.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(packed_runs.torch.cuda, "device_count", lambda: 2)
    with pytest.raises(InputError, match=r"--trainer\.devices=1"):
        check_room(2, some, {})
    check_room("auto", with_trainer(some, devices=1), {})


def test_runs_that_do_not_fit_the_memory_are_refused(some: list[Run], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_runs, "_memory", lambda: 8.0 * 2**30)
    estimates = {run.key: Estimate(1.0, size * 2**30, 1.0) for run, size in zip(some, (1, 3, 1, 1, 1), strict=True)}
    check_room(2, some, estimates)
    with pytest.raises(InputError, match=r"take 9\.0 GiB of the 8\.0 GiB"):
        check_room(3, some, estimates)


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
