"""Sentences at hand: SST-2's, and those of the docstrings of Python's own library."""

from __future__ import annotations

import ast
import hashlib
import re
import sysconfig
from pathlib import Path

END = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
WORDS = range(5, 41)
"""Words of a sentence of the library."""


def of_sst2(file: Path) -> list[str]:
    """Return the sentences of a file of SST-2."""
    return [line.split("\t")[0] for line in file.read_text(encoding="utf-8").splitlines()]


def of_library() -> tuple[list[str], list[str]]:
    """Return sentences of the docstrings of the library for training, and those of every eighth module for the test."""
    library = Path(sysconfig.get_path("stdlib"))
    parts: tuple[dict[str, None], dict[str, None]] = ({}, {})
    for path in sorted(library.rglob("*.py")):
        place = path.relative_to(library)
        if {"test", "tests", "idlelib", "lib2to3", "site-packages"} & set(place.parts):
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8", errors="ignore"))
        except SyntaxError:
            continue
        number = int(hashlib.sha256(place.as_posix().encode()).hexdigest(), 16)
        for node in ast.walk(tree):
            if isinstance(node, DOCUMENTED):
                parts[number % 8 == 0].update(dict.fromkeys(_sentences(ast.get_docstring(node) or "")))
    train, test = parts
    return list(train), [sentence for sentence in test if sentence not in train]


def _sentences(text: str) -> list[str]:
    """Return the sentences of a docstring's paragraphs, without code and lists of arguments."""
    sentences_of_all = []
    for paragraph in re.split(r"\n\s*\n", text):
        if re.search(r"^\s*(>>>|[-*+|=]|\w+\s*:)", paragraph, re.MULTILINE):
            continue
        sentences = END.split(" ".join(paragraph.split()))
        sentences_of_all += [
            one for one in sentences if len(one.split()) in WORDS and one[0].isupper() and one[-1] in ".!?"
        ]
    return sentences_of_all
