"""Hedging: when a slow unary call is sent a second time on another connection. No I/O: the client races the two calls.

The first response wins and the other call is cancelled. Hedging helps against one busy or silently dead worker among
many. It would make a general overload worse, so a budget limits it.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Literal, TypeAlias

from polyhead_client.errors import InvalidRequestError

# Delay before the second call: seconds, or "p95" for the 95th percentile of recent latencies; None disables hedging.
HedgeAfter: TypeAlias = float | Literal["p95"] | None

# Second calls as a share of all calls, and how many may accumulate while none is needed.
_HEDGE_SHARE, _MAX_TOKENS = 0.05, 10.0
# Number of recent latencies for the percentile, and the minimum below which there is no percentile yet.
_MAX_SAMPLES, _MIN_SAMPLES = 128, 20


class Hedging:
    """The hedging decisions for all unary calls of a client.

    Updates are not locked: concurrent threads may lose an update, which a throttle tolerates.
    """

    def __init__(self, after: HedgeAfter) -> None:
        """Starts with a budget of one second call.

        Raises:
            InvalidRequestError: ``after`` is not a positive finite number, ``"p95"`` or None.
        """
        if after is not None and after != "p95" and not (isinstance(after, int | float) and 0 < after < math.inf):
            problem = f'hedge_after_s: {after!r} is not a positive number of seconds or "p95"'
            raise InvalidRequestError("INVALID_ARGUMENT", problem)
        self._after = after
        self._latencies_s: deque[float] = deque(maxlen=_MAX_SAMPLES)
        self._tokens = 1.0

    def delay_s(self) -> float | None:
        """Records the start of a call and returns the delay before its second call in seconds; None for no hedging."""
        self._tokens = min(_MAX_TOKENS, self._tokens + _HEDGE_SHARE)
        if self._after != "p95":
            return self._after
        if len(self._latencies_s) < _MIN_SAMPLES:
            return None
        latencies = sorted(self._latencies_s.copy())
        return latencies[int(len(latencies) * 0.95)]

    def observe(self, latency_s: float) -> None:
        """Records the latency of a successful call."""
        if self._after == "p95":
            self._latencies_s.append(latency_s)

    def try_spend(self) -> bool:
        """Takes a token for a second call; False when the budget is spent."""
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True
