"""The methods of the oracle file that compare answers."""

from __future__ import annotations

from kdlab import losses
from tests.oracle_methods.method import Method

METHODS: dict[str, Method] = {
    "KD": Method(lambda h: losses.SoftTargets(h["T"])),
    "DKD": Method(lambda h: losses.DKD(h["alpha"], h["beta"], h["T"])),
}
