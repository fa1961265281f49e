"""Closed-loop and open-loop load, and its statistics.

Requires the standard library alone, so that the clients of other servers can use it in their own environments.

Closed loop: every answer triggers the next message, so that the number of messages in flight is constant. Open loop:
messages leave at Poisson arrivals whatever the server does, and latency counts from the scheduled send time, so that
a delayed client does not hide queueing (coordinated omission). The first second is a warm-up and does not count.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterator

WARM_UP_S = 1.0
# A message without an answer this long after the measured time counts as an error.
DRAIN_TIMEOUT_S = 30.0

# Sends the next message and waits for its answer; returns the number of items that were answered with a result.
Call = Callable[[], Awaitable[int]]


class ItemRefusedError(Exception):
    """A server refused an item in a closed loop, which never sends more than a server can accept."""


class LoadStats:
    """Throughput and latency of a load within the measured time.

    Args:
        seconds: Measured time after the warm-up; the clock starts with the construction.
        items: Texts per message.
    """

    def __init__(self, seconds: float, items: int = 1) -> None:
        self.begins = time.perf_counter() + WARM_UP_S
        self.ends = self.begins + seconds
        self._items = items
        self._answered = 0
        self._answered_in_total = 0
        self._offered = 0
        self._errors = 0
        self._latencies_s: list[float] = []
        # Wall and CPU seconds of the client at the first and at the last event within the measured time.
        self._clocks: list[tuple[float, float]] = []

    @property
    def over(self) -> bool:
        """Whether the measured time has ended."""
        return time.perf_counter() >= self.ends

    def add(self, results: int, sent_at: float) -> None:
        """Records the answer to a message of a closed loop.

        Args:
            results: Items of the message that were answered with a result.
            sent_at: Send time by ``time.perf_counter``.

        Raises:
            ItemRefusedError: An item was refused.
        """
        if results < self._items:
            raise ItemRefusedError(f"{self._items - results} of {self._items} items of a message were refused")
        if self._count(results):
            self._latencies_s.append(time.perf_counter() - sent_at)

    def add_scheduled(self, results: int, scheduled_at: float) -> None:
        """Records the answer to a message of an open loop, or its failure (``results`` = 0).

        Latency and errors count for messages scheduled within the measured time, even if the answer comes later.
        """
        self._count(results)
        if self.begins <= scheduled_at < self.ends:
            self._offered += self._items
            self._errors += self._items - results
            if results:
                self._latencies_s.append(time.perf_counter() - scheduled_at)

    def report(self) -> dict[str, float]:
        """Returns throughput, latency percentiles, errors and the CPU time that the client used.

        Returns:
            ``items_per_s``; ``offered_per_s`` (open loop only); ``p50_ms``, ``p90_ms``, ``p99_ms``; ``messages``, the
            number of latencies; ``answered``, all items answered with a result, those outside of the measured time
            included; ``errors`` in items; ``client_cores``, CPU seconds of this process per second.

        Raises:
            SystemExit: Too few answers came within the measured time.
        """
        if len(self._clocks) < 2 or not self._latencies_s:
            raise SystemExit(f"too few answers within the measured time; {self._errors} errors")
        ordered, seconds = sorted(self._latencies_s), self.ends - self.begins
        (begun, cpu_begun), (ended, cpu_ended) = self._clocks
        return {
            "items_per_s": self._answered / seconds,
            **({"offered_per_s": self._offered / seconds} if self._offered else {}),
            **{f"p{percent}_ms": 1000 * ordered[len(ordered) * percent // 100] for percent in (50, 90, 99)},
            "messages": len(ordered),
            "answered": self._answered_in_total,
            "errors": self._errors,
            "client_cores": (cpu_ended - cpu_begun) / (ended - begun),
        }

    def _count(self, results: int) -> bool:
        self._answered_in_total += results
        now = time.perf_counter()
        if not self.begins <= now < self.ends:
            return False
        self._clocks[1:] = [(now, time.process_time())]
        self._answered += results
        return True


def arrivals(stats: LoadStats, rate: float, seed: int) -> Iterator[float]:
    """Yields the send times of a Poisson process of ``rate`` messages per second until the measured time ends."""
    rng = random.Random(seed)
    due = time.perf_counter()
    while (due := due + rng.expovariate(rate)) < stats.ends:
        yield due


async def until(due: float) -> None:
    """Sleeps until a time of ``time.perf_counter``."""
    # A timer may fire half a millisecond early.
    while (left := due - time.perf_counter()) > 0:  # noqa: ASYNC110 - no event happens at that time
        await asyncio.sleep(left)


async def closed_loop(call: Call, in_flight: int, stats: LoadStats) -> None:
    """Keeps ``in_flight`` messages in flight until the measured time ends."""

    async def caller() -> None:
        while not stats.over:
            sent_at = time.perf_counter()
            stats.add(await call(), sent_at)

    await asyncio.gather(*(caller() for _ in range(in_flight)))


async def open_loop(call: Call, rate: float, stats: LoadStats, seed: int) -> None:
    """Sends ``rate`` messages per second without waiting for answers; failures are counted and not raised."""

    async def send(due: float) -> None:
        results = 0
        try:
            async with asyncio.timeout(stats.ends - time.perf_counter() + DRAIN_TIMEOUT_S):
                results = await call()
        except Exception:  # noqa: BLE001, S110 - task boundary; each client library has its own errors
            pass
        stats.add_scheduled(results, due)

    async with asyncio.TaskGroup() as tasks:
        for due in arrivals(stats, rate, seed):
            await until(due)
            tasks.create_task(send(due))
