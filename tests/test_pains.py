"""The table of reported pains in ``tests/README.md`` has every entry once, with tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROWS = {
    line.split(".")[0].removeprefix("| "): line
    for line in (ROOT / "tests/README.md").read_text().splitlines()
    if re.match(r"\| \d+\. ", line)
}
UNUSED = {5, 22, 24, 28, 32, 33, 46, 47, 48, 50, 51, 55, 56, 60, 62, 66, 67}
"""Numbers that the list of reports leaves out."""


def test_every_entry_is_there_once() -> None:
    numbers = re.findall(r"^\| (\d+)\. ", (ROOT / "tests/README.md").read_text(), re.M)
    assert numbers == [str(number) for number in range(1, 69) if number not in UNUSED]


@pytest.mark.parametrize("number", ROWS)
def test_its_tests_exist(number: str) -> None:
    assert ROWS[number].count(" | ") == 2
    tests = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", ROWS[number].split(" | ")[2])
    assert tests
    for path, name in tests:
        parts = ast.parse((ROOT / path).read_text()).body
        assert name in [part.name for part in parts if isinstance(part, ast.FunctionDef)], path
