"""Small text and JSON files, written atomically."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kdlab.files import atomic_write


def write_text(path: Path, text: str) -> None:
    """Write ``text``; folders are created."""
    with atomic_write(path, "w") as file:
        file.write(text)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as JSON; floats keep every bit."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the object in a JSON file; ``None`` where there is no file, or one that a full disk left unreadable."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
