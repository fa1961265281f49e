"""May it enter? Decided by how long an item would wait, before anything is spent on it.

The expected wait is the number of tokens that wait, in the queue or to be tokenized, divided by the rate at which
passes were seen to consume them. Unary calls are refused when it is too long; streams wait until there is room, which
holds back their client.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from .errors import ExpiredError, OverloadedError

# Weight of the newest pass in the moving average of the rate: about the last 20 passes count.
_NEWEST = 0.1


class Admission:
    """Keeps the queue short enough that what enters is worth computing. Not thread-safe: for the event loop."""

    def __init__(self, workers: int, max_queue_s: float, queued_tokens: Callable[[], int]) -> None:
        """Starts without a rate, which admits everything until the first pass was seen.

        Args:
            workers: Passes that run side by side.
            max_queue_s: Expected wait from which on unary items are refused and streams wait.
            queued_tokens: Tells how many tokens stand in the queue.
        """
        self._workers = workers
        self._max_queue_s = max_queue_s
        self._queued_tokens = queued_tokens
        # Tokens, as far as they can be guessed, of admitted texts that are not tokenized yet.
        self._reserved_tokens = 0
        self._tokens_per_s: float | None = None
        self._waiters: list[asyncio.Future[None]] = []

    def learn(self, tokens: int, compute_s: float) -> None:
        """Takes the rate from a finished pass of one worker."""
        rate = tokens / max(compute_s, 1e-6) * self._workers
        self._tokens_per_s = rate if self._tokens_per_s is None else (1 - _NEWEST) * self._tokens_per_s + _NEWEST * rate

    def expected_wait_s(self) -> float:
        """Seconds until everything that waits now is computed; 0 before the first pass was seen."""
        waiting = self._queued_tokens() + self._reserved_tokens
        return waiting / self._tokens_per_s if self._tokens_per_s else 0.0

    def admit(self, deadline: float | None, tokens: int, *, may_refuse: bool) -> None:
        """Lets an item in and reserves its place until ``release``.

        Args:
            deadline: ``time.monotonic()`` second after which the answer is worthless.
            tokens: How many tokens the item may have.
            may_refuse: False for a stream, which waited for ``room`` and is only held to its deadline.

        Raises:
            ExpiredError: The deadline has passed.
            OverloadedError: The expected wait is longer than the server's limit or the time that is left.
        """
        left_s = float("inf") if deadline is None else deadline - time.monotonic()
        if left_s <= 0:
            raise ExpiredError
        wait_s = self.expected_wait_s()
        limit_s = min(self._max_queue_s, left_s) if may_refuse else left_s
        if wait_s > limit_s:
            raise OverloadedError(wait_s, limit_s)
        self._reserved_tokens += tokens

    def release(self, tokens: int) -> None:
        """Gives reserved places back: their items are in the queue, or gone."""
        self._reserved_tokens -= tokens
        # They may have been all that was in the way, and when they are gone no pass will come to wake anybody.
        self.wake()

    async def room(self) -> None:
        """Waits until the expected wait is within the server's limit."""
        while self.expected_wait_s() > self._max_queue_s:
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            await waiter

    def wake(self) -> None:
        """Lets those who wait for room look again; called whenever something left the queue."""
        if self._waiters and self.expected_wait_s() <= self._max_queue_s:
            waiters, self._waiters = self._waiters, []
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)
