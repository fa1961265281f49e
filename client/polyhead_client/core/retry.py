"""When a call, a stream or an item is tried again, and when it is not. No I/O: the clients wait and send.

A server that is away (UNAVAILABLE, CANCELLED) has computed nothing that was asked, and asking again asks for the same
answer. One that has too much to do (RESOURCE_EXHAUSTED) is asked again only where it said after how long: without that,
a message was too large, and would be again. Everything else stands.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from typing import Protocol

from polyhead_client.errors import InvalidRequestError

# CANCELLED stands beside UNAVAILABLE: a server that stops gracefully answers it to calls that it has not looked at yet.
_AWAY = frozenset({"UNAVAILABLE", "CANCELLED"})

DEFAULT_MAX_ATTEMPTS = 5
# 0.05, 0.15, 0.45, 1 s: long enough for another server to take over, short enough for whoever waits for an answer.
_FIRST_DELAY_S, _MULTIPLIER, _MAX_DELAY_S = 0.05, 3.0, 1.0
# Of the time that is left: an attempt in the last moment is not answered in time, and takes another's place.
_WAIT_SHARE = 0.5
# gRPC's retry throttling (gRFC A6) at the largest size that it allows: a server that dies may take hundreds of calls
# with it, and all of them may be tried again. After that retries are a tenth of what succeeds.
_TOKENS, _TOKENS_A_SUCCESS = 1000.0, 0.1


class Failure(Protocol):
    """What both a call's error and an item's say."""

    @property
    def code(self) -> str:
        """The name of the gRPC status code."""

    @property
    def retry_after_s(self) -> float | None:
        """Seconds after which the server wants to be asked again; None when it did not say."""


class Deadline:
    """The end of the time that a call has."""

    def __init__(self, seconds: float | None, now: Callable[[], float] = time.monotonic) -> None:
        """Starts now; None for no limit."""
        self._now = now
        self._end = None if seconds is None else now() + seconds

    def left_s(self) -> float | None:
        """Seconds that are left, below 0 when it has passed; None when there is no limit."""
        return None if self._end is None else self._end - self._now()


class RetryBudget:
    """What keeps a client's retries from making an overload worse. All calls of a client share one.

    Threads may lose a count to each other: it is a brake, not a ledger.
    """

    def __init__(self) -> None:
        self._tokens = _TOKENS
        self._stopped = False

    def succeeded(self) -> None:
        """Counts what was answered."""
        self._tokens = min(_TOKENS, self._tokens + _TOKENS_A_SUCCESS)

    def failed(self) -> None:
        """Counts what would be worth trying again."""
        self._tokens = max(0.0, self._tokens - 1)

    def stop(self) -> None:
        """Allows nothing any more: the client is closed."""
        self._stopped = True

    def allows(self) -> bool:
        """Whether anything may be tried again."""
        return not self._stopped and self._tokens > _TOKENS / 2


class Retries:
    """The decisions for one call, its items included."""

    def __init__(
        self,
        max_attempts: int,
        budget: RetryBudget,
        deadline: Deadline,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        """Starts with nothing tried.

        Args:
            max_attempts: The first one included; 1 tries nothing again.
            budget: Of the client.
            deadline: Of the call; no wait takes more than half of what is left.
            uniform: Draws the jitter.
        """
        if max_attempts < 1:
            raise InvalidRequestError("INVALID_ARGUMENT", f"max_attempts: {max_attempts} is less than 1")
        self.deadline = deadline
        self._max_attempts = max_attempts
        self._budget = budget
        self._uniform = uniform

    def succeeded(self) -> None:
        """Counts a message of the server."""
        self._budget.succeeded()

    def refused(self) -> None:
        """Counts a message of which items were refused for now."""
        self._budget.failed()

    def failed(self, failure: Failure, attempts: int) -> float | None:
        """Counts a call that failed; returns what ``delay_s`` does."""
        if is_retryable(failure):
            self._budget.failed()
        return self.delay_s(failure, attempts)

    def delay_s(self, failure: Failure, attempts: int) -> float | None:
        """How long to wait before the next attempt.

        Args:
            failure: Of the last one.
            attempts: Made so far, in a row and in vain.

        Returns:
            Seconds; None when the failure stands.
        """
        if not is_retryable(failure) or attempts >= self._max_attempts or not self._budget.allows():
            return None
        delay_s = failure.retry_after_s
        if delay_s is None:
            delay_s = min(_MAX_DELAY_S, _FIRST_DELAY_S * _MULTIPLIER ** (attempts - 1))
        # Later by up to a third, never sooner than told: those who failed together do not come back together.
        delay_s *= self._uniform(1, 4 / 3)
        left_s = self.deadline.left_s()
        return delay_s if delay_s < (math.inf if left_s is None else left_s * _WAIT_SHARE) else None


def is_retryable(failure: Failure) -> bool:
    """Whether trying again can help: nothing was computed, and it is not the request's own fault."""
    return failure.code in _AWAY or (failure.code == "RESOURCE_EXHAUSTED" and failure.retry_after_s is not None)
