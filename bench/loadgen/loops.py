"""Loops that keep a server busy, and what comes of them. Standard library alone, so that rivals' clients run them.

Closed loop: a message that is answered makes room for the next one. Open loop: messages leave at Poisson arrivals,
whatever the server does, and latency counts from the moment at which a message was due, so that a client that is held
up hides nothing. The first second does not count.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterator

_WARM_UP_S = 1.0
# A message without an answer so long after the measured time counts as an error.
DRAIN_S = 30.0

# Sends the next message and waits for its answer; returns how many of its items were answered as they should be.
Call = Callable[[], Awaitable[int]]


class RefusedError(Exception):
    """A server refused an item in a closed loop, which asks for no more than a server can bear."""


class LoadStats:
    """What was answered within the measured time."""

    def __init__(self, seconds: float, items: int = 1) -> None:
        """Starts the clock: ``seconds`` after the warm-up are measured, of messages with ``items`` texts each."""
        self.begins = time.perf_counter() + _WARM_UP_S
        self.ends = self.begins + seconds
        self._items = items
        self._answered = 0
        self._due = 0
        self._errors = 0
        self._latencies: list[float] = []
        # Wall and CPU seconds at the first and at the last event within the time.
        self._clocks: list[tuple[float, float]] = []

    @property
    def over(self) -> bool:
        """Whether the time is up."""
        return time.perf_counter() >= self.ends

    def add(self, good: int, sent: float) -> None:
        """Takes in a message of a closed loop that has its answer, with ``good`` items answered as they should be.

        Raises:
            RefusedError: An item was refused.
        """
        if good < self._items:
            raise RefusedError(f"{self._items - good} of {self._items} items of a message were refused")
        if self._count(good):
            self._latencies.append(time.perf_counter() - sent)

    def add_due(self, good: int, due: float) -> None:
        """Takes in a message of an open loop that has its answer, or has failed (``good`` = 0).

        What was due within the time is judged, also when its answer came later.
        """
        self._count(good)
        if self.begins <= due < self.ends:
            self._due += self._items
            self._errors += self._items - good
            if good:
                self._latencies.append(time.perf_counter() - due)

    def report(self) -> dict[str, float]:
        """Rate, latencies, errors, and the client's own CPU seconds a second."""
        if len(self._clocks) < 2 or not self._latencies:
            raise SystemExit(f"next to nothing was answered within the measured time; {self._errors} errors")
        ordered, seconds = sorted(self._latencies), self.ends - self.begins
        (begun, cpu_begun), (ended, cpu_ended) = self._clocks
        return {
            "items_per_s": self._answered / seconds,
            **({"due_per_s": self._due / seconds} if self._due else {}),
            **{f"p{percent}_ms": 1000 * ordered[len(ordered) * percent // 100] for percent in (50, 90, 99)},
            "n": len(ordered),
            "errors": self._errors,
            "client_cpu": (cpu_ended - cpu_begun) / (ended - begun),
        }

    def _count(self, good: int) -> bool:
        now = time.perf_counter()
        if not self.begins <= now < self.ends:
            return False
        self._clocks[1:] = [(now, time.process_time())]
        self._answered += good
        return True


def arrivals(tally: LoadStats, rate: float, seed: int) -> Iterator[float]:
    """Moments of the clock at which messages are due, ``rate`` a second, until the tally's time is up."""
    rng = random.Random(seed)
    due = time.perf_counter()
    while (due := due + rng.expovariate(rate)) < tally.ends:
        yield due


async def until(due: float) -> None:
    """Waits for a moment of the clock."""
    # A timer may be early by half a millisecond.
    while (left := due - time.perf_counter()) > 0:  # noqa: ASYNC110 - no event happens at that moment
        await asyncio.sleep(left)


async def closed(call: Call, in_flight: int, tally: LoadStats) -> None:
    """Keeps ``in_flight`` messages on their way."""

    async def caller() -> None:
        while not tally.over:
            sent = time.perf_counter()
            tally.add(await call(), sent)

    await asyncio.gather(*(caller() for _ in range(in_flight)))


async def open_(call: Call, rate: float, tally: LoadStats, seed: int) -> None:
    """Sends ``rate`` messages a second without waiting for answers; what fails is counted and not raised."""

    async def send(due: float) -> None:
        good = 0
        try:
            async with asyncio.timeout(tally.ends - time.perf_counter() + DRAIN_S):
                good = await call()
        except Exception:  # noqa: BLE001, S110 - the edge of a task; each client has errors of its own kind
            pass
        tally.add_due(good, due)

    async with asyncio.TaskGroup() as tasks:
        for due in arrivals(tally, rate, seed):
            await until(due)
            tasks.create_task(send(due))
