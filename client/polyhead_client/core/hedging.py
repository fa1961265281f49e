"""When a call that takes long is asked a second time, on another connection. No I/O: the clients race the two.

The first answer counts and the other call is cancelled. It helps against the one worker in many that is busy, or gone
without a word; against an overload of all it would be poison, and so it has a budget.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Literal, TypeAlias

from polyhead_client.errors import InvalidRequestError

# Seconds, or what 95 of 100 recent calls took; None never asks twice.
HedgeAfter: TypeAlias = float | Literal["p95"] | None

# A twentieth more calls at the most, and no more than so many at once after a quiet time.
_SHARE, _MAX_SAVED = 0.05, 10.0
# Recent calls to know a percentile of; fewer than the least tell none.
_RECENT, _LEAST = 128, 20


class Hedging:
    """The decisions for all unary calls of a client.

    Threads may lose a count to each other: it is a brake, not a ledger.
    """

    def __init__(self, after: HedgeAfter) -> None:
        if after is not None and after != "p95" and not (isinstance(after, int | float) and 0 < after < math.inf):
            raise InvalidRequestError("INVALID_ARGUMENT", f'hedge_after_s: {after!r} is neither seconds nor "p95"')
        self._after = after
        self._latencies_s: deque[float] = deque(maxlen=_RECENT)
        self._saved = 1.0

    def delay_s(self) -> float | None:
        """Counts a call that begins; returns after how many seconds to ask again, None for never."""
        self._saved = min(_MAX_SAVED, self._saved + _SHARE)
        if self._after != "p95":
            return self._after
        if len(self._latencies_s) < _LEAST:
            return None
        latencies = sorted(self._latencies_s.copy())
        return latencies[int(len(latencies) * 0.95)]

    def observe(self, latency_s: float) -> None:
        """Counts a call that was answered."""
        if self._after == "p95":
            self._latencies_s.append(latency_s)

    def spend(self) -> bool:
        """Whether the second call may begin; if so, it is counted."""
        if self._saved < 1:
            return False
        self._saved -= 1
        return True
