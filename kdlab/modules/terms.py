"""The terms of the loss, gathered on the device and handed out as means."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor


class Terms:
    """Running sums of every loss term, raw and weighted, without waiting for the device.

    After some :meth:`add`, :meth:`flush` gives the means since the last flush: ``loss/total``; for each term
    ``loss/NAME`` (raw), ``loss/NAME_weighted`` and ``weight/NAME``.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor | float] = {}
        self._counts: dict[str, int] = {}

    def add(self, terms: Mapping[str, tuple[Tensor, float]], total: Tensor) -> None:
        """Note one step's terms, as (value, weight) by name, and their sum."""
        self._note("loss/total", total.detach())
        for name, (value, weight) in terms.items():
            value = value.detach()
            self._note(f"loss/{name}", value)
            self._note(f"loss/{name}_weighted", value * weight)
            self._note(f"weight/{name}", weight)

    def _note(self, key: str, value: Tensor | float) -> None:
        self._sums[key] = self._sums[key] + value if key in self._sums else value
        self._counts[key] = self._counts.get(key, 0) + 1

    def flush(self) -> dict[str, Tensor | float]:
        """The means since the last flush, by key; empty if there was no step."""
        means = {key: total / self._counts[key] for key, total in self._sums.items()}
        self._sums, self._counts = {}, {}
        return means
