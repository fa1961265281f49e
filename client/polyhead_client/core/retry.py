"""Retry policy: which failures are retried, after how long, and how often. No I/O: the caller waits and sends.

A server that is away (UNAVAILABLE, CANCELLED) has computed nothing, and a second request yields the same answer. An
overloaded server (RESOURCE_EXHAUSTED) is retried only when it sent a delay: without one, a message was too large and
would be too large again. Every other failure is final.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from typing import Protocol

from polyhead_client.errors import InvalidRequestError, require_integer

# CANCELLED beside UNAVAILABLE: a server that stops gracefully sends it for calls that it has not started.
_RETRYABLE_CODES = frozenset({"UNAVAILABLE", "CANCELLED"})

DEFAULT_MAX_ATTEMPTS = 5
# 0.05, 0.15, 0.45, 1 s: long enough for another server to take over, short enough for an interactive caller.
_INITIAL_DELAY_S, _MULTIPLIER, _MAX_DELAY_S = 0.05, 3.0, 1.0
# Longest delay as a share of the time left: an attempt right before the deadline only takes capacity from others.
_MAX_DELAY_SHARE = 0.5
# A retry is delayed by up to a third more than required and never by less, so that clients do not return in lockstep.
_MAX_JITTER = 4 / 3
# gRPC's retry throttling (gRFC A6) with the largest bucket that it allows: a server that dies may break hundreds of
# calls, and all of them may be retried. After that, retries are limited to a tenth of the successes.
_MAX_TOKENS, _TOKENS_PER_SUCCESS = 1000.0, 0.1
# A longer deadline counts as none: gRPC would take the point in time beyond the range of its clock for one in the past.
_MAX_DEADLINE_S = 1e9


class Failure(Protocol):
    """The attributes shared by a call's error and an item's error."""

    @property
    def code(self) -> str:
        """Name of the gRPC status code."""

    @property
    def retry_after_s(self) -> float | None:
        """Delay that the server requests before the next attempt, in seconds; None when it sent none."""


class Deadline:
    """The point in time at which a call expires."""

    def __init__(self, seconds: float | None, now: Callable[[], float] = time.monotonic) -> None:
        """Starts the countdown; None and infinity mean no limit.

        Raises:
            InvalidRequestError: ``seconds`` is not a number.
        """
        if not isinstance(seconds, int | float | None) or (isinstance(seconds, float) and math.isnan(seconds)):
            raise InvalidRequestError("INVALID_ARGUMENT", f"deadline_s: {seconds!r} is not a number of seconds or None")
        self._now = now
        self._end = None if seconds is None or seconds > _MAX_DEADLINE_S else now() + seconds

    def left_s(self) -> float | None:
        """Seconds left, negative after expiry; None without a limit."""
        return None if self._end is None else self._end - self._now()


class RetryBudget:
    """Token bucket that stops retries from amplifying an overload. All calls of a client share one.

    Updates are not locked: concurrent threads may lose an update, which a throttle tolerates.

    Attributes:
        tokens: Tokens in the bucket; retries are allowed while it is more than half full.
    """

    def __init__(self) -> None:
        self.tokens = _MAX_TOKENS

    def on_success(self) -> None:
        """Refills the bucket after a success."""
        self.tokens = min(_MAX_TOKENS, self.tokens + _TOKENS_PER_SUCCESS)

    def on_failure(self) -> None:
        """Takes a token after a retryable failure."""
        self.tokens = max(0.0, self.tokens - 1)

    def allows_retry(self) -> bool:
        """Whether a retry is allowed now."""
        return self.tokens > _MAX_TOKENS / 2


class RetryPolicy:
    """The retry decisions for one call and its items."""

    def __init__(
        self,
        max_attempts: int,
        budget: RetryBudget,
        deadline: Deadline,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        """Starts without a failure.

        Args:
            max_attempts: Attempts including the first; 1 disables retries.
            budget: The client's budget.
            deadline: The call's deadline; no delay exceeds half of the time left.
            uniform: Source of the jitter.

        Raises:
            InvalidRequestError: ``max_attempts`` is not an integer of at least 1.
        """
        require_integer("max_attempts", max_attempts)
        self.deadline = deadline
        self._max_attempts = max_attempts
        self._budget = budget
        self._uniform = uniform

    def on_success(self) -> None:
        """Records a response without rejected items."""
        self._budget.on_success()

    def on_rejection(self) -> None:
        """Records a response that rejects items because the server is overloaded."""
        self._budget.on_failure()

    def on_failure(self, failure: Failure, attempts: int) -> float | None:
        """Records a failed call and returns ``delay_s(failure, attempts)``."""
        if is_retryable(failure):
            self._budget.on_failure()
        return self.delay_s(failure, attempts)

    def delay_s(self, failure: Failure, attempts: int) -> float | None:
        """Computes the delay before the next attempt.

        Args:
            failure: The failure of the last attempt.
            attempts: Consecutive attempts that failed.

        Returns:
            Seconds; None when the failure is final.
        """
        if not is_retryable(failure) or attempts >= self._max_attempts or not self._budget.allows_retry():
            return None
        delay_s = failure.retry_after_s
        if delay_s is None:
            delay_s = min(_MAX_DELAY_S, _INITIAL_DELAY_S * _MULTIPLIER ** (attempts - 1))
        delay_s *= self._uniform(1, _MAX_JITTER)
        left_s = self.deadline.left_s()
        return delay_s if delay_s < (math.inf if left_s is None else left_s * _MAX_DELAY_SHARE) else None


def is_retryable(failure: Failure) -> bool:
    """Whether a retry can succeed: nothing was computed, and the request itself is not at fault."""
    return failure.code in _RETRYABLE_CODES or (
        failure.code == "RESOURCE_EXHAUSTED" and failure.retry_after_s is not None
    )
