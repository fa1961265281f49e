"""Distances between recent texts and validation texts, and whether chance explains them.

Neighboring texts are not independent: one client sends many of one kind, and the day differs from the night. A test
that assumes independence finds drift every day. So the variance of the recent texts is estimated from the differences
between their blocks, buckets of time or runs of rows, and their number is divided by how much larger it is than that of
independent texts: the design effect (Rao and Scott, Annals of Statistics 12, 1984; Kish's effective sample size). The
p-values are those of the F distribution (Thomas and Rao, JASA 82, 1987), which takes into account that few blocks
estimate a variance roughly. The validation texts count as independent.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]

# Bins with fewer expected texts in either sample are tested together, as the approximation by chi-square requires.
_MIN_EXPECTED = 5.0
_MAX_ITERATIONS = 300
_TOLERANCE = 1e-12
_TINY = 1e-300


class Difference(NamedTuple):
    """The difference of recent texts from validation texts.

    Attributes:
        distance: The part of it that chance does not explain.
        p_value: Probability of such a difference without drift; None with fewer than two blocks of texts.
        effective: Number of independent texts with the same variance.
    """

    distance: float
    p_value: float | None
    effective: float


def compare_shares(blocks: Floats, reference: Floats, texts: int) -> Difference:
    """Compares shares by the G-test of two samples and the Jensen-Shannon distance.

    The distance is the square root of the Jensen-Shannon divergence in bits, from which the expectation without drift
    is subtracted. Unlike the population stability index it is finite if a bin is empty on one side.

    Args:
        blocks: (K, bins) counts of each block.
        reference: (bins,) shares of the validation texts.
        texts: Number of the validation texts.
    """
    counted = blocks[blocks.sum(axis=1) > 0]  # (K, bins)
    total = float(counted.sum())
    if not total:
        return Difference(0.0, None, 0.0)
    effective = total / _design_effect(counted)
    counted, shares = _pool(counted, np.asarray(reference, dtype=np.float64), effective, texts)
    effective = total / _design_effect(counted)
    recent = counted.sum(axis=0) / total  # (bins,)
    freedom = len(shares) - 1
    if not freedom:
        return Difference(0.0, 1.0 if len(counted) > 1 else None, effective)
    middle = (recent + shares) / 2
    divergence = (_relative_entropy(recent, middle) + _relative_entropy(shares, middle)) / 2
    expected = freedom * (1 / effective + 1 / texts) / 8
    distance = math.sqrt(max(divergence - expected, 0.0) / math.log(2))
    if len(counted) < 2:
        return Difference(distance, None, effective)
    both = (effective * recent + texts * shares) / (effective + texts)
    statistic = 2 * (effective * _relative_entropy(recent, both) + texts * _relative_entropy(shares, both))
    return Difference(distance, f_tail(statistic / freedom, freedom, (len(counted) - 1) * freedom), effective)


def compare_rates(blocks: Floats, reference: Floats, texts: int) -> Difference:
    """Compares the rate of each label of a multilabel head by itself; returns the largest distance.

    Args:
        blocks: (K, labels + 1) texts to which each label applies, and number of texts.
        reference: (labels,) rates of the validation texts.
        texts: Number of the validation texts.
    """
    applies, number = blocks[:, :-1], blocks[:, -1]
    found = [
        compare_shares(
            np.column_stack([number - applies[:, label], applies[:, label]]), np.array([1 - rate, rate]), texts
        )
        for label, rate in enumerate(reference)
    ]
    p_values = [one.p_value for one in found if one.p_value is not None]
    return Difference(
        max(one.distance for one in found),
        min(1.0, len(found) * min(p_values)) if p_values else None,
        min(one.effective for one in found),
    )


def compare_means(blocks: Floats, mean: Floats, spread: Floats, texts: int) -> Difference:
    """Compares the mean of vectors.

    The distance is that of the means in units of the root mean square distance of a validation text from their mean,
    without what is expected by chance. Its square is tested by Satterthwaite's approximation: the degrees of freedom
    are those of independent dimensions whose sum would vary as much as the squared differences between the blocks.

    Args:
        blocks: (K, dimensions + 1) sum of the vectors of each block, and number of texts.
        mean: (dimensions,) of the validation texts.
        spread: (dimensions,) their standard deviation.
        texts: Number of the validation texts.
    """
    sums, number = blocks[blocks[:, -1] > 0, :-1], blocks[blocks[:, -1] > 0, -1]
    total, variance = float(number.sum()), float((np.asarray(spread) ** 2).sum())
    if not total or not variance:
        return Difference(0.0, None, total)
    recent = sums.sum(axis=0) / total  # (dimensions,)
    squared = float(((recent - mean) ** 2).sum())
    if len(number) < 2:
        return Difference(math.sqrt(max(squared / variance - 1 / total - 1 / texts, 0.0)), None, total)
    deviations = (sums / number[:, None] - recent) * np.sqrt(number)[:, None]  # (K, dimensions)
    products = deviations @ deviations.T  # (K, K)
    between = float(np.trace(products)) / (len(number) - 1)
    effective = total / max(between / variance, 1.0)
    expected = variance * (1 / effective + 1 / texts)
    apart = float((products**2).sum() - (np.diag(products) ** 2).sum()) / (len(number) * (len(number) - 1))
    freedom = min(max(between**2 / apart, 1.0), float(len(recent))) if apart else 1.0
    p_value = f_tail(squared / expected, freedom, freedom * (len(number) - 1))
    return Difference(math.sqrt(max(squared - expected, 0.0) / variance), p_value, effective)


def f_tail(value: float, above: float, below: float) -> float:
    """Returns the probability that a variable of the F distribution exceeds a value.

    Args:
        value: At least 0.
        above: Degrees of freedom of the numerator.
        below: Those of the denominator.
    """
    return _incomplete_beta(below / 2, above / 2, below / (below + above * value))


def _pool(counted: Floats, shares: Floats, effective: float, texts: int) -> tuple[Floats, Floats]:
    """Joins the bins in which too few texts are expected."""
    recent = counted.sum(axis=0) / counted.sum()
    expected = (effective * recent + texts * shares) * min(effective, texts) / (effective + texts)
    rare = expected < _MIN_EXPECTED
    if rare.sum() and expected[rare].sum() < _MIN_EXPECTED and not rare.all():
        # Too few together, too: they join the smallest of the others.
        rare[np.flatnonzero(~rare)[expected[~rare].argmin()]] = True
    if rare.sum() < 2:
        return counted, shares
    joined = np.column_stack([counted[:, ~rare], counted[:, rare].sum(axis=1)])
    return joined, np.append(shares[~rare], shares[rare].sum())


def _design_effect(counted: Floats) -> float:
    """Returns how much larger the variance between blocks is than that of independent texts, at least 1."""
    sizes, present = counted.sum(axis=1), counted.sum(axis=0) > 0
    freedom = (len(counted) - 1) * (int(present.sum()) - 1)
    if not freedom:
        return 1.0
    expected = np.outer(sizes, counted[:, present].sum(axis=0) / sizes.sum())  # (K, bins)
    return max(float(((counted[:, present] - expected) ** 2 / expected).sum()) / freedom, 1.0)


def _relative_entropy(shares: Floats, others: Floats) -> float:
    """Returns the Kullback-Leibler divergence in nats; the others are 0 only where the shares are."""
    present = shares > 0
    return float((shares[present] * np.log(shares[present] / others[present])).sum())


def _incomplete_beta(a: float, b: float, x: float) -> float:
    """Returns the regularized incomplete beta function, by its continued fraction (Numerical Recipes, 6.4)."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    logarithm = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    if x < (a + 1) / (a + b + 2):
        return math.exp(logarithm) * _continued_fraction(a, b, x) / a
    return 1 - math.exp(logarithm) * _continued_fraction(b, a, 1 - x) / b


def _continued_fraction(a: float, b: float, x: float) -> float:
    """Evaluates the continued fraction by the modified Lentz method."""
    c, d = 1.0, 1 / _nonzero(1 - (a + b) * x / (a + 1))
    value = d
    for m in range(1, _MAX_ITERATIONS):
        for factor in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 / _nonzero(1 + factor * d)
            c = _nonzero(1 + factor / c)
            value *= c * d
        if abs(c * d - 1) < _TOLERANCE:
            break
    return value


def _nonzero(value: float) -> float:
    return value if abs(value) > _TINY else _TINY
