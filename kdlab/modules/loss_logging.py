"""The terms of the loss, gathered on the device and handed out as means."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from kdlab.outputs import Outputs

MOST = 256
"""How many values of one term are kept before they are summed."""


class Terms:
    """The values of every loss term, raw and weighted, without waiting for the device.

    A step only keeps references; the arithmetic is done once for many steps. After some :meth:`add`, :meth:`flush`
    gives the means since the last flush: ``loss/total``; for each term ``loss/NAME`` (raw), ``loss/NAME_weighted`` and
    ``weight/NAME``; and for each learner ``train/NAME_accuracy``, the share of samples that it names right.
    """

    def __init__(self) -> None:
        self._values: dict[str, list[Tensor]] = {}
        self._right: dict[str, list[Tensor]] = {}
        self._weights: dict[str, list[float]] = {}
        self._sums: dict[str, Tensor | float] = {}
        self._counts: dict[str, int] = {}

    def add(
        self, terms: Mapping[str, tuple[Tensor, float]], total: Tensor, outputs: Mapping[str, Outputs], target: Tensor
    ) -> None:
        """Note one step's terms, as (value, weight) by name, their sum, and which class each learner names."""
        if target.dim() == 1 and not target.is_floating_point():
            for name, each in outputs.items():
                if each.logits.dim() == 2:
                    right = each.logits.argmax(1) == target
                    self._right.setdefault(f"train/{name}_accuracy", []).append(right)
        self._values.setdefault("", []).append(total.detach())
        for name, (value, weight) in terms.items():
            self._values.setdefault(name, []).append(value.detach())
            self._weights.setdefault(name, []).append(weight)
        if len(self._values[""]) == MOST:
            self._sum()

    def _sum(self) -> None:
        for name, kept in self._values.items():
            values = torch.stack(kept)
            self._note(f"loss/{name or 'total'}", values.sum(), len(kept))
            if name:
                weights = self._weights[name]
                self._note(f"loss/{name}_weighted", (values * values.new_tensor(weights)).sum(), len(kept))
                self._note(f"weight/{name}", sum(weights), len(kept))
        for key, right in self._right.items():
            both = torch.cat(right)
            self._note(key, both.sum(), len(both))
        self._values, self._weights, self._right = {}, {}, {}

    def _note(self, key: str, value: Tensor | float, count: int) -> None:
        self._sums[key] = self._sums[key] + value if key in self._sums else value
        self._counts[key] = self._counts.get(key, 0) + count

    def flush(self) -> dict[str, Tensor | float]:
        """The means since the last flush, by key; empty if there was no step."""
        self._sum()
        means = {key: total / self._counts[key] for key, total in self._sums.items()}
        self._sums, self._counts = {}, {}
        return means
