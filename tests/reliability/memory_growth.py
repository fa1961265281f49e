"""Whether the memory of a server grows that loads another bundle now and then, for which it needs room for two."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

# So many floors in all where there is time: as many in each half, with as many loads of either bundle.
PERIODS = 32
# Student's t, two-sided 95 %, for a line through the second half of them: two of its 16 points are spent on it.
_T = 2.145
# In the half of 10 minutes, a server that settled went up by 4 MB, 80 MB an hour, and wandered by as much: the limit
# has to come to more than that.
_SHORTEST_S = 1800.0
MAX_MB_PER_HOUR = 60.0
MAX_MB = 20.0
# Of fewer periods than these, one whose reload outlasts it is not outvoted: it holds two models all the time.
_FEWEST = 8
_MOST_MB_OF_FEW = 200.0


@dataclass(frozen=True)
class Growth:
    """How much the floor grows.

    Attributes:
        by: Between the medians of the halves in MB, or in the second half in MB an hour.
        error: Half the 95 % interval; 0 where there is too little for one.
        limit: What it has to stay below.
        seconds: For how long it was watched.
    """

    by: float
    error: float
    limit: float
    seconds: float

    @property
    def is_bounded(self) -> bool:
        """Whether it is known to be below the limit."""
        return self.by + self.error < self.limit

    def __str__(self) -> str:
        if self.error:
            return f"{self.by:+.0f} +- {self.error:.0f} MB an hour in the second half"
        return f"{self.by:+.0f} MB from the first half to the second ({self.seconds:.0f} s: too short for more)"


def growth(times: Sequence[float], floors: Sequence[float]) -> Growth:
    """How much the floor of memory grows: the least of each period between two reloads.

    Args:
        times: When each was seen, in seconds.
        floors: MB.
    """
    half, seconds = len(floors) // 2, times[-1] - times[0]
    if len(floors) < PERIODS or seconds < _SHORTEST_S * (1 - 2 / PERIODS):
        by = statistics.median(floors[half:]) - statistics.median(floors[:half])
        return Growth(by, 0.0, MAX_MB if len(floors) >= _FEWEST else _MOST_MB_OF_FEW, seconds)
    return Growth(*line([one / 3600 for one in times[half:]], floors[half:]), MAX_MB_PER_HOUR, seconds)


def line(xs: Sequence[float], ys: Sequence[float]) -> tuple[float, float]:
    """Slope of a line through 16 points, and half its 95 % interval."""
    if len(xs) != PERIODS // 2:
        raise ValueError(f"the quantile is that for {PERIODS // 2} points, not for {len(xs)}")
    slope, intercept = statistics.linear_regression(xs, ys)
    residue = sum((y - slope * x - intercept) ** 2 for x, y in zip(xs, ys, strict=True))
    mean = statistics.fmean(xs)
    return slope, _T * math.sqrt(residue / (len(xs) - 2) / sum((x - mean) ** 2 for x in xs))
