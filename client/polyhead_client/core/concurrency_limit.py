"""How many items a stream may have in flight: a number that was given, or one that follows the throughput."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from polyhead_client.errors import InvalidRequestError

# Two messages at first: one that the server computes and one that waits for it. A step is a quarter more, or a message.
_FIRST, _STEP, _LEAST, _MOST = 64, 32, 32, 1024
_STEP_SHARE = 0.25
# The part of a step that must come back as throughput. Where the window is the limit all of it does; where the server
# is, none, and answers would only wait longer in its queue. In between there is room for noise.
_GAIN = 0.5
# Rounds to stay after a step that brought too little, before the next is tried.
_HOLD = 16


class Window(Protocol):
    """A bound on items in flight, and what it hears of them."""

    limit: int

    def filled(self) -> None:
        """Hears that an item had to wait because the window was full."""

    def answered(self, items: int) -> None:
        """Hears of answers."""

    def refused(self) -> None:
        """Hears that the server had too much to do."""


class FixedWindow:
    """A number that was given."""

    def __init__(self, limit: int) -> None:
        if limit < 1:
            raise InvalidRequestError("INVALID_ARGUMENT", f"max_in_flight: {limit} is less than 1")
        self.limit = limit

    def filled(self) -> None:
        """Changes nothing."""

    def answered(self, items: int) -> None:
        """Changes nothing."""

    def refused(self) -> None:
        """Changes nothing."""


class AdaptiveWindow:
    """Grows while that brings throughput.

    A round is as many answers as the window is wide; one in which the window was never full says nothing. As long as
    each step brings throughput, the next follows; one that does not is taken back, and tried again after ``_HOLD``
    rounds. So the window stays a step or so around throughput times latency, where the server never waits for the
    client and the queue is short. A server that has too much to do halves it.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self.limit = _FIRST
        self._now = now
        self._narrower = _FIRST  # the limit before the last step
        self._rate = 0.0  # items a second there
        self._hold = 0
        self._was_full = False
        self._answered = 0
        self._began = now()

    def filled(self) -> None:
        """Hears that an item had to wait because the window was full."""
        self._was_full = True

    def answered(self, items: int) -> None:
        """Hears of answers."""
        self._answered += items
        if self._answered < self.limit:
            return
        now = self._now()
        # A clock may stand still between two messages.
        rate = self._answered / max(now - self._began, 1e-6)
        if self._was_full:
            self._judge(rate)
        self._answered, self._began, self._was_full = 0, now, False

    def refused(self) -> None:
        """Hears that the server had too much to do."""
        self._stay(max(_LEAST, self.limit // 2))

    def _judge(self, rate: float) -> None:
        if self._hold:
            self._hold -= 1
            # Texts get longer and servers busier: what counts is the rate of late.
            self._rate = 0.75 * self._rate + 0.25 * rate if self._rate else rate
            if not self._hold:
                self._widen(self._rate)
        elif rate > self._rate * (1 + _GAIN * (self.limit / self._narrower - 1)):
            self._widen(rate)
        else:
            self._stay(self._narrower)

    def _widen(self, rate: float) -> None:
        self._rate, self._narrower = rate, self.limit
        self.limit = min(self.limit + max(_STEP, int(self.limit * _STEP_SHARE)), _MOST)

    def _stay(self, limit: int) -> None:
        self.limit = self._narrower = limit
        self._rate, self._hold = 0.0, _HOLD
