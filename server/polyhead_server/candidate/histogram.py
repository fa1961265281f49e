"""Histograms of positive numbers with buckets of equal ratio, which add up across processes."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

# Upper bound of a bucket, divided by its lower bound: quantiles are at most 5 % too high.
GROWTH = 1.05
_LOG_GROWTH = math.log(GROWTH)
# Everything smaller counts as this, everything larger as that: a few thousand buckets at most.
MIN_VALUE, MAX_VALUE = 1e-9, 1e6


class LogHistogram:
    """Counts numbers, and keeps their exact sum. Not safe for threads.

    Attributes:
        total: The sum.
    """

    def __init__(self) -> None:
        self._buckets: Counter[int] = Counter()
        self.total = 0.0

    def add(self, value: float, count: int = 1) -> None:
        """Counts a number that was observed ``count`` times."""
        self._buckets[math.ceil(math.log(min(max(value, MIN_VALUE), MAX_VALUE)) / _LOG_GROWTH)] += count
        self.total += value * count

    @property
    def count(self) -> int:
        """How many numbers were counted."""
        return self._buckets.total()

    @property
    def mean(self) -> float:
        """Their mean; 0 without any."""
        return self.total / self.count if self.count else 0.0

    def quantile(self, share: float) -> float:
        """Returns the number below which a share of them lies, at most 5 % too high; 0 without any."""
        rank, seen = share * self.count, 0
        for bucket in sorted(self._buckets):
            seen += self._buckets[bucket]
            if seen >= rank:
                return math.exp(bucket * _LOG_GROWTH)
        return 0.0

    def counts(self) -> dict[str, int]:
        """Returns the counts by bucket, as JSON has them."""
        return {str(bucket): count for bucket, count in self._buckets.items()}

    def add_counts(self, counts: dict[str, int], total: float) -> None:
        """Adds the counts of another histogram, whose numbers have the sum ``total``."""
        for bucket, count in counts.items():
            self._buckets[int(bucket)] += count
        self.total += total

    def latency(self) -> Latency:
        """Summarizes seconds."""
        return Latency(self.count, self.mean, *(self.quantile(share) for share in (0.5, 0.9, 0.99)))


@dataclass(frozen=True, slots=True)
class Latency:
    """Summary of durations in seconds; all zero without any.

    Attributes:
        texts: Number of durations.
        mean: Mean.
        p50: Median.
        p90: 90th percentile.
        p99: 99th percentile.
    """

    texts: int = 0
    mean: float = 0.0
    p50: float = 0.0
    p90: float = 0.0
    p99: float = 0.0
