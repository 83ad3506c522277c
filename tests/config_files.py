"""The shipped configs, and the files that each recipe's own command lays over each other."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "configs"
COMMAND = re.compile(r"^#   kdlab (?:fit|generations)((?: -c \S+)+)", re.M)


def names(folder: str) -> list[str]:
    """The configs of a folder, by stem."""
    return sorted(path.stem for path in (CONFIGS / folder).glob("*.yaml"))


KNOWLEDGE, IMAGENET, RECIPES = names("knowledge"), names("knowledge/imagenet"), names("recipes")


def layers(recipe: str) -> list[Path]:
    """The files that the first command in the recipe's comment names, its bases first."""
    command = COMMAND.search((CONFIGS / f"recipes/{recipe}.yaml").read_text())
    assert command is not None, f"the comment of {recipe}.yaml names no command"
    return [ROOT / word for word in command[1].split() if word != "-c"]
