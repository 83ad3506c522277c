"""Means over seeds, differences with their intervals, and the average relative improvement."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import NamedTuple

LEVEL = 0.95


class Spread(NamedTuple):
    """Mean and standard deviation over n seeds; one seed has no deviation."""

    mean: float
    std: float | None
    n: int

    def __str__(self) -> str:
        return f"{self.mean:.2f}" + (f" ± {self.std:.2f}" if self.std is not None else "")


class Difference(NamedTuple):
    """A difference of means and its 95 % interval; there is no interval where either has one seed."""

    value: float
    low: float | None
    high: float | None

    def __str__(self) -> str:
        interval = "" if self.low is None or self.high is None else f" [{self.low:+.2f}, {self.high:+.2f}]"
        return f"{self.value:+.2f}{interval}"


def spread(values: Sequence[float]) -> Spread | None:
    """Return mean and sample standard deviation, with n - 1 in the denominator; ``None`` of no values."""
    if not values:
        return None
    return Spread(fmean(values), stdev(values) if len(values) > 1 else None, len(values))


def difference(one: Sequence[float], other: Sequence[float]) -> Difference | None:
    r"""Return the mean of ``one`` minus that of ``other``, with Welch's interval for unequal variances.

    .. math:: \bar a - \bar b \pm t_{0.975, \nu} \sqrt{s_a^2 / n_a + s_b^2 / n_b}, \quad \nu = \frac{(s_a^2 / n_a +
        s_b^2 / n_b)^2}{(s_a^2 / n_a)^2 / (n_a - 1) + (s_b^2 / n_b)^2 / (n_b - 1)}

    B. L. Welch: The generalization of "Student's" problem when several different population variances are involved,
    Biometrika 34, 1947. Samples without variance have an interval of no width.
    """
    first, second = spread(one), spread(other)
    if first is None or second is None:
        return None
    value = first.mean - second.mean
    if first.std is None or second.std is None:
        return Difference(value, None, None)
    if first.std == second.std == 0:
        return Difference(value, value, value)
    from scipy.stats import ttest_ind

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # where one sample is constant
        interval = ttest_ind(one, other, equal_var=False).confidence_interval(LEVEL)
    return Difference(value, float(interval.low), float(interval.high))


def relative_improvement(
    reference: Mapping[str, float], other: Mapping[str, float], plain: Mapping[str, float]
) -> float | None:
    r"""Return the average relative improvement (ARI) of a reference method over another one, in percent.

    .. math:: ARI = \frac{100}{M} \sum_{i=1}^M \frac{a_i - b_i}{b_i - p_i}

    with the accuracies of the reference a, of the other method b and of plain training p on M pairs. Where b is close
    to p it is large and says little; where b < p its sign turns.

    Args:
        reference: mean accuracy by pair.
        other: the same of the other method.
        plain: the same of plain training.

    Returns:
        The mean over the pairs that all three have; ``None`` if there is none, or if the other method is exactly as
        good as plain training on one.

    Paper: Y. Tian, D. Krishnan, P. Isola, "Contrastive Representation Distillation", ICLR 2020, arXiv 1910.10699.
    """
    pairs = [pair for pair in reference if pair in other and pair in plain]
    if not pairs or any(other[pair] == plain[pair] for pair in pairs):
        return None
    return 100 * fmean((reference[pair] - other[pair]) / (other[pair] - plain[pair]) for pair in pairs)
