"""The time of one sample: of which samples, and which of its repeats counts."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kdlab.studies import latency as measured
from kdlab.studies.latency import REPEATS, SAMPLES, latency


def test_latency_is_the_median_of_the_least(monkeypatch: pytest.MonkeyPatch) -> None:
    now, calls, threads = [0.0], list[Any](), torch.get_num_threads()
    monkeypatch.setattr(measured.time, "thread_time", lambda: now[0])

    def forward(sample: float) -> None:
        assert torch.is_inference_mode_enabled()
        assert torch.get_num_threads() == 1
        first = sample not in calls
        calls.append(sample)
        now[0] += sample + (10.0 if first else 0.0)  # the first of a sample is slow

    assert latency(forward, iter([1.0, 2.0, 7.0])) == pytest.approx(2.0)
    assert len(calls) == 3 * REPEATS
    calls.clear()
    assert latency(forward, map(float, range(1, 1000))) == pytest.approx((SAMPLES + 1) / 2)
    assert len(calls) == SAMPLES * REPEATS
    assert latency(forward, []) is None
    assert torch.get_num_threads() == threads
