"""Tests of one mechanism over many cases: a few in ``make test``, all others in ``make test-all``."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def tiered(cases: Iterable[Any], quick: Collection[Any]) -> list[Any]:
    """Return the parameters of a test: those in ``quick`` run in ``make test``, the others are marked ``full``.

    A case is a value, or a tuple of values for several arguments.
    """
    return [case if case in quick else _full(case) for case in cases]


def _full(case: Any) -> Any:
    return pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.full)
