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

GROWTH = 300_000_000
"""Bytes by which a process may grow before garbage is collected: Trainer, module and CLI form cycles."""

_resident = 0
"""Bytes of resident memory after the last collection."""


def pytest_collection_finish() -> None:
    """Keep what imports made out of every later collection, which would take half a second each."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """What a test draws does not depend on which tests ran before it."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _frozen_teachers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """No fit changes a frozen teacher or saves it, but where a test that is marked ``moves_teacher`` does so itself."""
    if request.node.get_closest_marker("moves_teacher") is None:
        teacher_guard.install(monkeypatch)


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.fixture(autouse=True)
def _collected() -> Iterator[None]:
    """Memory of a test goes back to the system, where it is much."""
    global _resident
    yield
    if sys.platform == "linux" and _resident_bytes() > _resident + GROWTH:
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        _resident = _resident_bytes()
