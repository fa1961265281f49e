"""Concurrency limits: how many items of a stream may be in flight, fixed or adapted to the measured throughput."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from polyhead_client.errors import require_integer

# Initially two messages of 32 items: one that the server computes and one that waits for it.
_INITIAL_LIMIT, _MIN_LIMIT, _MAX_LIMIT = 64, 32, 1024
# A step widens the limit by a quarter, and by at least one message.
_STEP_SHARE, _MIN_STEP = 0.25, 32
# Share of a step that must show up as throughput for the step to be kept. Where the limit is the bottleneck all of it
# does; where the server is, none does, and answers would only wait longer in its queue. In between lies the noise.
_MIN_GAIN = 0.5
# Rounds to hold the limit after a step that was not kept.
_HOLD_ROUNDS = 16


class ConcurrencyLimit(Protocol):
    """An upper bound on the items in flight.

    Attributes:
        limit: Maximum number of items in flight now.
    """

    limit: int

    def on_full(self) -> None:
        """Records that an item had to wait because the limit was reached."""

    def on_answers(self, items: int) -> None:
        """Records answered items."""

    def on_overload(self) -> None:
        """Records that the server rejected items because it is overloaded."""


class FixedLimit:
    """A constant limit, chosen by the caller."""

    def __init__(self, limit: int) -> None:
        """Sets the limit.

        Raises:
            InvalidRequestError: The limit is not an integer of at least 1.
        """
        require_integer("max_in_flight", limit)
        self.limit = limit

    def on_full(self) -> None:
        """Does nothing."""

    def on_answers(self, items: int) -> None:
        """Does nothing."""

    def on_overload(self) -> None:
        """Does nothing."""


class AdaptiveLimit:
    """A limit that grows as long as growth increases throughput.

    A round is as many answers as the limit allows in flight; rounds in which the limit was never reached are ignored.
    While each step increases throughput, the next step follows. A step that does not is taken back and tried again
    after ``_HOLD_ROUNDS`` rounds. The limit therefore stays within a step of throughput times latency, where the server
    never waits for the client and its queue stays short. An overloaded server halves the limit.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self.limit = _INITIAL_LIMIT
        self._now = now
        self._previous_limit = _INITIAL_LIMIT  # before the last step
        self._rate = 0.0  # items per second at the previous limit
        self._hold_rounds = 0
        self._was_full = False
        self._answered = 0
        self._round_start = now()

    def on_full(self) -> None:
        """Records that an item had to wait because the limit was reached."""
        self._was_full = True

    def on_answers(self, items: int) -> None:
        """Records answered items; at the end of a round, adjusts the limit."""
        self._answered += items
        if self._answered < self.limit:
            return
        now = self._now()
        # The clock may not advance between two messages.
        rate = self._answered / max(now - self._round_start, 1e-6)
        if self._was_full:
            self._end_round(rate)
        self._answered, self._round_start, self._was_full = 0, now, False

    def on_overload(self) -> None:
        """Halves the limit."""
        self._hold_at(max(_MIN_LIMIT, self.limit // 2))

    def _end_round(self, rate: float) -> None:
        if self._hold_rounds:
            self._hold_rounds -= 1
            # Texts get longer and servers get busier: an exponential average keeps the recent rate.
            self._rate = 0.75 * self._rate + 0.25 * rate if self._rate else rate
            if not self._hold_rounds:
                self._widen(self._rate)
        elif rate > self._rate * (1 + _MIN_GAIN * (self.limit / self._previous_limit - 1)):
            self._widen(rate)
        else:
            self._hold_at(self._previous_limit)

    def _widen(self, rate: float) -> None:
        self._rate, self._previous_limit = rate, self.limit
        self.limit = min(self.limit + max(_MIN_STEP, int(self.limit * _STEP_SHARE)), _MAX_LIMIT)

    def _hold_at(self, limit: int) -> None:
        self.limit = self._previous_limit = limit
        self._rate, self._hold_rounds = 0.0, _HOLD_ROUNDS
