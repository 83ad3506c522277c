"""The methods of the oracle file that compare relations between samples."""

from __future__ import annotations

from kdlab import losses
from tests.oracle_methods.method import Method

METHODS: dict[str, Method] = {
    "RKD-distance": Method(lambda h: losses.RKDDistance()),
    "RKD-angle": Method(lambda h: losses.RKDAngle()),
    "SP": Method(lambda h: losses.SimilarityPreserving()),
}
