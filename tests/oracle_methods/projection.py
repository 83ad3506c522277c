"""The methods of the oracle file that project the student into the teacher."""

from __future__ import annotations

from tests.oracle_methods.method import Method

METHODS: dict[str, Method] = {}
