"""Discrete-event simulation of server processes under closed-loop load, for machines with more cores.

The Python of a process, for messages, items and batches, runs serially under its interpreter lock; batches are
computed in parallel in native code. The model has that lock, the cores, and the queue from which a batch takes the
texts that wait, up to a number of tokens. It has no caches, no memory bandwidth and no network.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

CORES = (2, 4, 8, 16, 32, 64)
WORKERS = (1, 2, 4, 8, 16)
IN_FLIGHT_PER_CORE = 64
_SIMULATED_S = 5.0


@dataclass(frozen=True)
class Costs:
    """Costs in microseconds.

    Attributes:
        message: Python per message, in both directions.
        item: Python per text.
        batch: Python per batch.
        compute: One core per batch, whatever its size.
        token: One core per token.
    """

    message: float
    item: float
    batch: float
    compute: float
    token: float


def simulate(
    costs: Costs, messages: Mapping[str, int], mean_tokens: int, max_batch_tokens: int
) -> dict[str, dict[str, dict[str, float]]]:
    """Returns texts per second by load, cores and workers.

    Args:
        costs: Costs of a message, an item, a batch and a token.
        messages: Texts per message by the name of the load.
        mean_tokens: Mean tokens per text.
        max_batch_tokens: Batch size limit in tokens.
    """
    found: dict[str, dict[str, dict[str, float]]] = {}
    for load, items in messages.items():
        for cores in CORES:
            rates: dict[str, float] = {}
            for workers in (count for count in WORKERS if count <= cores):
                # Workers share nothing, so one of them stands for all.
                process = Process(costs, cores // workers, items, mean_tokens, max_batch_tokens)
                rates[str(workers)] = round(workers * process.items_per_s())
            found.setdefault(load, {})[str(cores)] = rates
    return found


class Process:
    """One server process in a closed loop with ``IN_FLIGHT_PER_CORE`` texts in flight per core."""

    def __init__(self, costs: Costs, cores: int, items: int, mean_tokens: int, max_batch_tokens: int) -> None:
        self._costs = costs
        self._idle_cores = cores
        self._items = items
        self._max_batch_tokens = max_batch_tokens
        self._random = random.Random(0)
        self._mean_tokens = mean_tokens
        self._now_us = 0.0
        self._answered = 0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._event_numbers = itertools.count()
        self._python_queue: deque[tuple[float, Callable[[], None]]] = deque()
        self._python_idle = True
        # Waiting texts: their tokens, and the number of unanswered items of their message.
        self._waiting: deque[tuple[int, list[int]]] = deque()
        self._messages = max(1, cores * IN_FLIGHT_PER_CORE // items)

    def items_per_s(self) -> float:
        """Runs the simulation and returns texts per second."""
        for _ in range(self._messages):
            self._send()
        while self._events and self._now_us < _SIMULATED_S * 1e6:
            self._now_us, _, event = heapq.heappop(self._events)
            event()
        return self._answered / (self._now_us / 1e6)

    def _after(self, us: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self._now_us + us, next(self._event_numbers), event))

    def _run_python(self, us: float, then: Callable[[], None]) -> None:
        """Queues work for the interpreter lock."""
        self._python_queue.append((us, then))
        self._next_python()

    def _next_python(self) -> None:
        if self._python_idle and self._python_queue:
            us, then = self._python_queue.popleft()
            self._python_idle = False

            def done() -> None:
                self._python_idle = True
                then()
                self._next_python()

            self._after(us, done)

    def _send(self) -> None:
        # Half of a message's cost is the request, the other half the response.
        self._run_python(self._costs.message / 2 + self._items * self._costs.item / 2, self._enqueue)

    def _enqueue(self) -> None:
        left = [self._items]
        for _ in range(self._items):
            tokens = max(3, round(self._random.gammavariate(4, self._mean_tokens / 4)))
            self._waiting.append((tokens, left))
        self._start_batches()

    def _start_batches(self) -> None:
        while self._idle_cores and self._waiting:
            self._idle_cores -= 1
            batch = [self._waiting.popleft()]
            tokens = batch[0][0]
            while self._waiting and tokens + self._waiting[0][0] <= self._max_batch_tokens:
                tokens += self._waiting[0][0]
                batch.append(self._waiting.popleft())
            self._compute(batch, tokens)

    def _compute(self, batch: list[tuple[int, list[int]]], tokens: int) -> None:
        compute_us = self._costs.compute + self._costs.token * tokens

        def computed() -> None:
            self._run_python(self._costs.batch / 2, postprocessed)

        def postprocessed() -> None:
            self._idle_cores += 1
            for _, left in batch:
                left[0] -= 1
                if not left[0]:
                    self._run_python(self._costs.message / 2 + self._items * self._costs.item / 2, self._respond)
            self._start_batches()

        self._run_python(self._costs.batch / 2, lambda: self._after(compute_us, computed))

    def _respond(self) -> None:
        self._answered += self._items
        self._send()
