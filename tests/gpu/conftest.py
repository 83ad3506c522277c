"""Tests of what needs an accelerator: on a GPU where there is one, else on the CPU, so that their code is tried."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.gpu)


@pytest.fixture
def device() -> Iterator[torch.device]:
    if not torch.cuda.is_available():
        yield torch.device("cpu")
        return
    yield torch.device("cuda", 0)
    torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    torch.cuda.empty_cache()


@pytest.fixture
def accelerator(device: torch.device) -> str:
    """Return Lightning's name of the device."""
    return "gpu" if device.type == "cuda" else "cpu"
