"""May it enter? Decided by how long an item would wait, before anything is spent on it.

The expected wait is the number of tokens in the queue divided by the rate at which passes were seen to consume them.
Unary calls are refused when it is too long; streams wait until there is room, which holds back their client.
"""

from __future__ import annotations

import asyncio
import time

from .errors import ExpiredError, OverloadedError

# Weight of the newest pass in the moving average of the rate: about the last 20 passes count.
_NEWEST = 0.1


class Admission:
    """Keeps the queue short enough that what enters is worth computing. Not thread-safe: for the event loop."""

    def __init__(self, workers: int, max_queue_s: float) -> None:
        self._workers = workers
        self._max_queue_s = max_queue_s
        self._tokens_per_s: float | None = None
        self._waiters: list[asyncio.Future[None]] = []

    def observe(self, tokens: int, compute_s: float, waiting_tokens: int) -> None:
        """Learns from a finished pass of one worker, and lets waiting streams in when there is room again."""
        rate = tokens / max(compute_s, 1e-6) * self._workers
        self._tokens_per_s = rate if self._tokens_per_s is None else (1 - _NEWEST) * self._tokens_per_s + _NEWEST * rate
        if self.expected_wait_s(waiting_tokens) <= self._max_queue_s:
            self.open()

    def expected_wait_s(self, waiting_tokens: int) -> float:
        """Seconds until the tokens that wait now are computed; 0 before the first pass was seen."""
        return waiting_tokens / self._tokens_per_s if self._tokens_per_s else 0.0

    def admit(self, waiting_tokens: int, deadline: float | None) -> None:
        """Lets an item in.

        Args:
            waiting_tokens: Tokens in the queue.
            deadline: ``time.monotonic()`` second after which the answer is worthless.

        Raises:
            ExpiredError: The deadline has passed.
            OverloadedError: The expected wait is longer than the server's limit or the time that is left.
        """
        left_s = float("inf") if deadline is None else deadline - time.monotonic()
        if left_s <= 0:
            raise ExpiredError
        wait_s = self.expected_wait_s(waiting_tokens)
        if wait_s > min(self._max_queue_s, left_s):
            raise OverloadedError(wait_s, min(self._max_queue_s, left_s))

    async def room(self, waiting_tokens: int) -> None:
        """Waits until the expected wait is within the server's limit."""
        if self.expected_wait_s(waiting_tokens) > self._max_queue_s:
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            await waiter

    def open(self) -> None:
        """Lets everyone in who waits for room."""
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
