"""What holds for every test."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests import teacher_guard

collect_ignore = ["mutation.py"]
"""Needs the extra ``mutation``."""

LARGE = 1_200_000_000
"""Bytes of resident memory above which garbage is collected: Trainer, module and CLI form cycles."""


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """What a test draws does not depend on which tests ran before it."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _frozen_teachers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """No fit changes a frozen teacher or saves it, but where a test that is marked ``moves_teacher`` does so itself."""
    if request.node.get_closest_marker("moves_teacher") is None:
        teacher_guard.install(monkeypatch)


@pytest.fixture(autouse=True)
def _collected() -> Iterator[None]:
    """Memory of a test goes back to the system, where it is much."""
    yield
    if sys.platform == "linux" and int(Path("/proc/self/statm").read_text().split()[1]) * 4096 > LARGE:
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)
