"""Location of the real data, for tests that check facts about them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

DATA = Path(os.environ.get("KDLAB_DATA", ""))
needs_data = pytest.mark.skipif(
    "KDLAB_DATA" not in os.environ, reason="set KDLAB_DATA to the folder with the real data"
)
