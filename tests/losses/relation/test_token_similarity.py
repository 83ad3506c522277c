"""Token similarity against the formula in float64, one by one."""

from __future__ import annotations

import pytest

from kdlab.losses import TokenSimilarity
from tests.losses.relation.similarities import NONE, cosine, draw, kl, outputs


def test_similarities_of_tokens_within_an_image() -> None:
    s, t, tau = draw(0, 4, 5, 3), draw(1, 4, 5, 6), 0.3
    expected = 0.0
    for b in range(4):
        for n in range(5):
            one, other = ([cosine(x[b, n], x[b, m]) / tau for m in range(5)] for x in (s, t))
            expected += kl(other, one) / 20
    assert TokenSimilarity(tau)(outputs(s, True), outputs(t, True), NONE).item() == pytest.approx(expected, rel=1e-10)
