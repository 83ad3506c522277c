"""What holds for every test."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """What a test draws does not depend on which tests ran before it."""
    torch.manual_seed(0)
