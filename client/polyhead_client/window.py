"""How many items a stream may have in flight: a number that was given, or one that follows the throughput."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from .errors import InvalidRequestError

# Two messages at first: one that the server computes and one that waits for it. Steps are one message.
_FIRST, _STEP, _LEAST, _MOST = 64, 32, 32, 1024
# A wider window must bring this much; less is noise, and would only make answers wait longer in the server's queue.
_GAIN = 1.05
# Rounds to stay after a step that brought nothing, before the next is tried.
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

    A round is as many answers as the window is wide. After a round in which the window was full, it takes one step more
    if the round was faster than the best before by ``_GAIN``; if not, it goes back by that step and stays for ``_HOLD``
    rounds. So it ends a step or two above throughput times latency, where the server never waits for the client and the
    queue is short. A server that has too much to do halves it.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self.limit = _FIRST
        self._now = now
        self._narrower = _FIRST  # the limit to go back to
        self._rate = 0.0  # items a second that a wider window must beat
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
        self.limit = self._narrower = max(_LEAST, self.limit // 2)
        self._rate, self._hold = 0.0, _HOLD

    def _judge(self, rate: float) -> None:
        if self._hold:
            self._hold -= 1
            # What the window reaches as it is; texts get longer and servers busier.
            self._rate = rate if not self._rate else 0.75 * self._rate + 0.25 * rate
        elif rate > self._rate * _GAIN:
            self._rate, self._narrower = rate, self.limit
            self.limit = min(self.limit + _STEP, _MOST)
        else:
            self.limit, self._rate, self._hold = self._narrower, 0.0, _HOLD
