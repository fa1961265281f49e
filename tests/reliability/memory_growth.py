"""Decides whether the memory of a server grows, although each reload temporarily needs memory for two bundles."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

# Number of periods between reloads if time permits; even halves, so that each half loads either bundle equally often.
PERIODS = 32
# Two-sided 95 % quantile of Student's t for a line through the second half: 16 points, two degrees of freedom fewer.
_T = 2.145
# In a half of 10 minutes, a settled server grew by 4 MB (80 MB an hour) and fluctuated by as much. A slope is only
# meaningful if the limit amounts to more than that.
_MIN_SLOPE_S = 1800.0
MAX_MB_PER_HOUR = 60.0
MAX_MB = 20.0
# With fewer periods, one reload that outlasts its period, and so holds two models throughout, changes the median.
_MIN_PERIODS = 8
_MAX_MB_OF_FEW_PERIODS = 200.0


@dataclass(frozen=True)
class Growth:
    """Growth of the minimum memory.

    Attributes:
        by: MB an hour in the second half, or MB between the medians of the halves.
        error: Half the width of the 95 % interval; 0 if the time is too short for an interval.
        limit: Limit that ``by`` and ``error`` together must stay below.
        seconds: Duration of the observation.
    """

    by: float
    error: float
    limit: float
    seconds: float

    @property
    def is_bounded(self) -> bool:
        """Whether the growth is below the limit, including its error."""
        return self.by + self.error < self.limit

    def __str__(self) -> str:
        if self.error:
            return f"{self.by:+.0f} +- {self.error:.0f} MB an hour in the second half"
        return f"{self.by:+.0f} MB from the first half to the second ({self.seconds:.0f} s are too short for a slope)"


def growth(times: Sequence[float], minima: Sequence[float]) -> Growth:
    """Returns how much the minimum memory of each period between two reloads grows.

    Args:
        times: Time of each minimum in seconds.
        minima: Minimum memory of each period in MB.
    """
    half, seconds = len(minima) // 2, times[-1] - times[0]
    if len(minima) < PERIODS or seconds < _MIN_SLOPE_S * (1 - 2 / PERIODS):
        by = statistics.median(minima[half:]) - statistics.median(minima[:half])
        return Growth(by, 0.0, MAX_MB if len(minima) >= _MIN_PERIODS else _MAX_MB_OF_FEW_PERIODS, seconds)
    return Growth(*fit_slope([one / 3600 for one in times[half:]], minima[half:]), MAX_MB_PER_HOUR, seconds)


def leak_by_period(periods: int, seconds: float, measured: Growth) -> list[float]:
    """Returns the memory in MB that a leak of twice the limit would have added by each period.

    The leak grows by the number of the period and not by the time of its minimum: in a soak of a few seconds, the
    minima of two neighboring periods may lie a moment apart.

    Args:
        periods: Number of periods between two reloads.
        seconds: Duration of all periods.
        measured: Growth without the leak, whose limit is doubled.
    """
    limit_per_period = measured.limit * seconds / 3600 / periods if measured.error else measured.limit / (periods / 2)
    return [2 * limit_per_period * period for period in range(periods)]


def fit_slope(xs: Sequence[float], ys: Sequence[float]) -> tuple[float, float]:
    """Returns the slope of a line through 16 points, and half the width of its 95 % interval.

    Raises:
        ValueError: The number of points is not 16, for which the quantile holds.
    """
    if len(xs) != PERIODS // 2:
        raise ValueError(f"the quantile holds for {PERIODS // 2} points, not for {len(xs)}")
    slope, intercept = statistics.linear_regression(xs, ys)
    residue = sum((y - slope * x - intercept) ** 2 for x, y in zip(xs, ys, strict=True))
    mean = statistics.fmean(xs)
    return slope, _T * math.sqrt(residue / (len(xs) - 2) / sum((x - mean) ** 2 for x in xs))
