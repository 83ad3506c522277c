"""Schedules against their formulas."""

from __future__ import annotations

import math
from typing import Any

import pytest

from kdlab.errors import InputError
from kdlab.schedules import Constant, Cosine, ExponentialRamp, Linear, Progress, Schedule, Steps

RAMPS = {
    Linear: lambda x: x,
    Cosine: lambda x: 0.5 - 0.5 * math.cos(math.pi * x),
    ExponentialRamp: lambda x: math.exp(-5 * (1 - x) ** 2),
}


@pytest.mark.parametrize("kind", RAMPS)
@pytest.mark.parametrize("unit", ["epoch", "step"])
def test_ramps_against_their_formula(kind: Any, unit: Any) -> None:
    schedule = kind(length=8, start=0.5, end=-2.0, begin=3, until=15, unit=unit)
    for now in range(20):
        progress = Progress(now, 999) if unit == "epoch" else Progress(999, now)
        expected = 0.5 - 2.5 * RAMPS[kind](min((now - 3) / 8, 1.0)) if 3 <= now < 15 else 0.0
        assert schedule(progress) == pytest.approx(expected, abs=1e-12)


def test_constant_is_a_switch() -> None:
    values = [Constant(begin=2, until=4)(Progress(epoch, 0)) for epoch in range(6)]
    assert values == [0, 0, 1, 1, 0, 0]
    assert Constant(begin=2)(Progress(10**6, 0)) == 1


def test_steps_change_at_their_milestones() -> None:
    schedule = Steps([0.1, 0.5, 1.0], [2, 5], begin=1, until=8)
    assert [schedule(Progress(epoch, 0)) for epoch in range(9)] == [0, 0.1, 0.1, 0.5, 0.5, 0.5, 1, 1, 0]


def test_offset_moves_the_curve_not_the_window() -> None:
    schedule = Linear(length=4, begin=2, offset=1)
    assert [schedule(Progress(epoch, 0)) for epoch in range(7)] == [0, 0, 0.25, 0.5, 0.75, 1, 1]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Constant(begin=3, until=3), "until=3 is not above begin=3"),
        (lambda: Constant(unit="steps"), "'epoch' or 'step'"),  # type: ignore[arg-type]
        (lambda: Linear(length=0), "length must be above 0"),
        (lambda: Steps([1.0], [5]), "one value more"),
        (lambda: Steps([1.0, 0.5, 0.1], [5, 5]), "ascending"),
    ],
)
def test_bad_arguments(make: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_a_user_schedule_needs_only_a_curve() -> None:
    class Square(Schedule):
        def curve(self, elapsed: float) -> float:
            return elapsed**2

    assert Square(begin=1)(Progress(4, 0)) == 9
    with pytest.raises(NotImplementedError, match="curve"):
        Schedule()(Progress(0, 0))
