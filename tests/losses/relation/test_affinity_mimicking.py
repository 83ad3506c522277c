"""Affinity mimicking against the formula in float64, one by one."""

from __future__ import annotations

import pytest

from kdlab.losses import AffinityMimicking
from tests.losses.relation.similarities import NONE, cosine, draw, kl, outputs


def test_affinities_in_both_directions() -> None:
    s, t, tau = draw(0, 4, 3), draw(1, 4, 3), 0.5
    one = [[cosine(s[i], t[j]) / tau for j in range(4)] for i in range(4)]
    other = [[cosine(t[i], t[j]) / tau for j in range(4)] for i in range(4)]
    rows = sum(kl(other[i], one[i]) for i in range(4)) / 4
    columns = sum(kl([r[j] for r in other], [r[j] for r in one]) for j in range(4)) / 4
    value = AffinityMimicking(tau, projection=None)(outputs(s), outputs(t), NONE)
    assert value.item() == pytest.approx((rows + columns) / 2, rel=1e-10)
    assert AffinityMimicking(tau, projection=None)(outputs(t), outputs(t), NONE).item() == pytest.approx(0, abs=1e-12)
