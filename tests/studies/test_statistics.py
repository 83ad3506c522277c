"""Means, intervals and the average relative improvement, against SciPy and against sums by hand."""

from __future__ import annotations

import math
import random
from fractions import Fraction

import pytest
from scipy.stats import ttest_ind

from kdlab.studies.statistics import Difference, Spread, difference, relative_improvement, spread


def test_a_spread_has_n_minus_one_in_the_denominator() -> None:
    assert spread([]) is None
    assert spread([71.25]) == Spread(71.25, None, 1)
    # deviations -1, 1, 3, -3 from 70: 20 / 3
    assert spread([69.0, 71.0, 73.0, 67.0]) == Spread(70.0, math.sqrt(20 / 3), 4)
    assert spread([70.1, 70.1]) == Spread(70.1, 0.0, 2)


SAMPLES = [
    ([71.2, 71.9, 70.8], [69.1, 69.4, 68.7]),
    ([71.2, 71.9], [69.1, 69.4]),
    ([71.2, 71.9], [69.1, 69.4, 68.7, 69.0, 69.9]),
    ([70.0, 80.0, 75.5], [75.1, 75.2, 75.15]),
    ([1.0, 2.0, 4.0, 8.0, 16.0], [3.0, 3.5]),
]


@pytest.mark.parametrize(("one", "other"), SAMPLES)
def test_the_interval_of_a_difference_is_welchs(one: list[float], other: list[float]) -> None:
    found = difference(one, other)
    assert found is not None
    interval = ttest_ind(one, other, equal_var=False).confidence_interval(0.95)
    value = math.fsum(one) / len(one) - math.fsum(other) / len(other)
    assert found == pytest.approx((value, interval.low, interval.high), rel=1e-12)


def test_the_interval_of_random_samples_is_welchs() -> None:
    draw = random.Random(0)
    for _ in range(50):
        sizes, widths = (draw.randint(2, 8), draw.randint(2, 8)), (draw.uniform(0.01, 3), draw.uniform(0.01, 3))
        one, other = ([draw.gauss(70, width) for _ in range(size)] for size, width in zip(sizes, widths, strict=True))
        found = difference(one, other)
        assert found is not None
        interval = ttest_ind(one, other, equal_var=False).confidence_interval(0.95)
        assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-10)


def test_the_interval_of_a_difference_by_hand() -> None:
    # Means 3 and 2, variances 1 and 1, three of each: freedom 4, t 2.776445, half width 2.776445 * sqrt(2 / 3)
    found = difference([2.0, 3.0, 4.0], [1.0, 2.0, 3.0])
    assert found == pytest.approx((1.0, 1 - 2.266958, 1 + 2.266958), abs=1e-6)
    # Against three of no variance: freedom 2, t 4.302653, half width 4.302653 * sqrt(1 / 3)
    found = difference([5.0, 5.0, 5.0], [1.0, 2.0, 3.0])
    assert found == pytest.approx((3.0, 3 - 2.484138, 3 + 2.484138), abs=1e-6)


def test_one_seed_has_a_difference_and_no_interval() -> None:
    assert difference([71.5], [69.0, 69.5]) == Difference(2.25, None, None)
    assert difference([71.0, 72.0], [69.0]) == Difference(2.5, None, None)
    assert difference([], [69.0]) is None
    assert difference([69.0], []) is None


def test_equal_samples_have_an_interval_of_no_width() -> None:
    assert difference([71.5, 71.5], [69.0, 69.0, 69.0]) == Difference(2.5, 2.5, 2.5)


# CIFAR-100, last epoch: student alone, KD, CRD. Tables 1 and 2 of the CRD paper as in the README of its code.
CRD = {
    "wrn_40_2 → wrn_16_2": ("73.26", "74.92", "75.48"),
    "wrn_40_2 → wrn_40_1": ("71.98", "73.54", "74.14"),
    "resnet56 → resnet20": ("69.06", "70.66", "71.16"),
    "resnet110 → resnet20": ("69.06", "70.67", "71.46"),
    "resnet110 → resnet32": ("71.14", "73.08", "73.48"),
    "resnet32x4 → resnet8x4": ("72.50", "73.33", "75.51"),
    "vgg13 → vgg8": ("70.36", "72.98", "73.94"),
}


def column(place: int, pairs: int = len(CRD)) -> dict[str, float]:
    return {name: float(row[place]) for name, row in list(CRD.items())[:pairs]}


def test_the_average_relative_improvement_by_hand() -> None:
    # 0.56 / 1.66 = 33.73 %
    assert relative_improvement(column(2, 1), column(1, 1), column(0, 1)) == pytest.approx(33.7349397590, abs=1e-9)
    # and 0.60 / 1.56 = 38.46 %
    assert relative_improvement(column(2, 2), column(1, 2), column(0, 2)) == pytest.approx(36.0982391103, abs=1e-9)
    # the seven pairs: (33.735 + 38.462 + 31.25 + 49.068 + 20.619 + 262.651 + 36.641) / 7
    assert relative_improvement(column(2), column(1), column(0)) == pytest.approx(67.489, abs=1e-3)


def test_the_average_relative_improvement_is_exact_to_rounding() -> None:
    rows = [tuple(map(Fraction, row)) for row in CRD.values()]
    expected = 100 * sum((crd - kd) / (kd - plain) for plain, kd, crd in rows) / len(rows)
    assert relative_improvement(column(2), column(1), column(0)) == pytest.approx(float(expected), rel=1e-12)


def test_relative_improvement_averages_over_common_pairs() -> None:
    whole = relative_improvement(column(2, 1), column(1, 1), column(0, 1))
    assert relative_improvement(column(2, 1), column(1), column(0)) == whole
    assert relative_improvement(column(2), column(1, 1), column(0)) == whole
    assert relative_improvement(column(2), column(1), column(0, 1)) == whole
    assert relative_improvement({}, column(1), column(0)) is None
    assert relative_improvement({"x": 1.0}, {"y": 1.0}, {"x": 0.5, "y": 0.5}) is None


def test_no_relative_improvement_over_a_method_like_plain() -> None:
    assert relative_improvement({"a": 72.0, "b": 72.0}, {"a": 70.0, "b": 71.0}, {"a": 70.0, "b": 70.0}) is None
    assert relative_improvement({"a": 72.0}, {"a": 69.0}, {"a": 70.0}) == pytest.approx(-300.0)  # worse: the sign turns
