"""Latencies and memory, of functions whose cost is known."""

from __future__ import annotations

import statistics
import sys
import time

import pytest
import torch
from torch import Tensor

from kdlab.export import timing


def test_rounds_alternate_and_report_both_percentiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "SECONDS", 0.0)
    order, now = list[str](), [0.0]

    def short() -> None:
        order.append("a")
        now[0] += 0.0005

    def long() -> None:
        order.append("b")
        now[0] += 0.002 if order.count("b") % 3 else 0.006  # every third call takes three times as long

    found = timing.latencies({"a": short, "b": long}, rounds=3, clock=lambda: now[0])
    assert "".join(order[2 * timing.WARM_UP :]) == "aaabbb" * 3
    assert found["a"] == pytest.approx((0.5, 0.5))
    assert found["b"] == pytest.approx((2, 6))


def test_milliseconds_are_those_that_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "SECONDS", 0.0)
    assert timing.latencies({"sleeps": lambda: time.sleep(0.003)}, rounds=1)["sleeps"].p50 >= 3


def test_time_of_one_sample_is_the_median_over_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock of its own: a sample takes as many seconds as it says, and waiting for others does not count."""
    now, seen, threads = [0.0], list[float](), torch.get_num_threads()
    monkeypatch.setattr(timing.time, "thread_time", lambda: now[0])

    def forward(sample: float) -> None:
        assert torch.is_inference_mode_enabled()
        assert torch.get_num_threads() == 1
        seen.append(sample)
        now[0] += sample
        time.sleep(1e-4)

    samples = [0.001, 0.002, 0.007]
    assert timing.one_sample(forward, iter(samples)) == pytest.approx(0.002)
    assert seen[:4] == [*samples, samples[0]]
    assert now[0] >= timing.ROUNDS * timing.BRIEF
    seen.clear()
    many = [0.01 * number for number in range(1, 100)]
    expected = statistics.median(many[: timing.SAMPLES])
    assert timing.one_sample(forward, many) == pytest.approx(expected, rel=0.5)
    assert set(seen) <= set(many[: timing.SAMPLES])
    assert timing.one_sample(forward, []) is None
    assert torch.get_num_threads() == threads


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="VmHWM is Linux's")
@pytest.mark.full
def test_peak_memory_is_what_loading_and_running_take() -> None:
    """64 MB of weights that stay, and 32 MB while it runs."""

    def load() -> object:
        weights = torch.ones(16, 2**20)

        def run(inputs: Tensor) -> float:
            return float((inputs + torch.ones(8, 2**20)).sum() + weights[0, 0])

        return run

    peak = timing.peak_memory(load, torch.zeros(1))  # type: ignore[arg-type]
    if peak is None:
        pytest.skip("the system does not reset its counter")
    assert 96e6 < peak < 160e6


def test_load_of_other_processes_is_a_share() -> None:
    load = timing.others_load(0.05)
    assert load is None or 0 <= load <= 1
