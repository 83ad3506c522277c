"""Griffe extension: docstrings as Markdown before mkdocstrings renders them."""

from __future__ import annotations

import re
from typing import Any

import griffe
from docstrings import markdown

TOGETHER = re.compile(r"^    (\w+(?:, \w+)+): (see .*)$", re.M)
"""Parameters that share a description, which griffe reads as one parameter."""
SHAPES = re.compile(r"^Shapes:\n((?: .*\n?|\n(?= ))+)", re.M)


class Docstrings(griffe.Extension):
    """Convert the reStructuredText in every docstring: formulas, references, literals and examples."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Convert the docstring of one module, class, function or attribute."""
        if obj.docstring:
            text = SHAPES.sub(_listed, TOGETHER.sub(_apart, obj.docstring.value))
            obj.docstring.value = markdown(text)


def _apart(match: re.Match[str]) -> str:
    return "\n".join(f"    {name}: {match[2]}" for name in match[1].split(", "))


def _listed(match: re.Match[str]) -> str:
    return "Shapes:\n" + re.sub(r"^    (\w[\w, ]*): ", r"    - `\1`: ", match[1], flags=re.M)
