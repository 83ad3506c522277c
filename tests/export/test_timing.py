"""Latencies and memory, of functions whose cost is known."""

from __future__ import annotations

import sys
import time

import pytest
import torch
from torch import Tensor

from kdlab.export import timing


def test_rounds_alternate_and_report_both_percentiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "SECONDS", 0.0)
    order: list[str] = []

    def short() -> None:
        order.append("a")

    def long() -> None:
        order.append("b")
        time.sleep(0.002 if order.count("b") % 3 else 0.006)  # every third call takes three times as long

    found = timing.latencies({"a": short, "b": long}, rounds=3)
    assert "".join(order[2 * timing.WARM_UP :]) == "aaabbb" * 3
    assert found["a"].p50 < 1 < 2 <= found["b"].p50 < 6 <= found["b"].p95


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
