"""Discrete-event simulation of server processes under closed-loop load, for machines with more cores.

The Python of a process, for messages, items and batches, runs serially under its interpreter lock; batches are
computed in parallel in native code. The model has that lock, the cores, and the queue from which a batch takes the
texts that wait, up to a number of tokens. With fronts, each front has a lock of its own, and one engine process has the
queue. It has no caches, no memory bandwidth and no network.
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
        message: Python per message, in both directions, of the process that has the connection.
        item: Python per text, of the same process.
        batch: Python per batch, of the process that computes.
        compute: One core per batch, whatever its size.
        token: One core per token.
        engine_message: Python of the engine process per message that a front passes on.
        engine_item: Python of the engine process per text of such a message.
    """

    message: float
    item: float
    batch: float
    compute: float
    token: float
    engine_message: float = 0.0
    engine_item: float = 0.0


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
                own = cores // workers
                server = Server(costs, own, items, mean_tokens, max_batch_tokens, in_flight=own * IN_FLIGHT_PER_CORE)
                rates[str(workers)] = round(workers * server.items_per_s())
            found.setdefault(load, {})[str(cores)] = rates
    return found


class _Interpreter:
    """The interpreter lock of a process: one piece of work after the other."""

    def __init__(self, after: Callable[[float, Callable[[], None]], None]) -> None:
        self._after = after
        self._waiting: deque[tuple[float, Callable[[], None]]] = deque()
        self._idle = True

    def run(self, us: float, then: Callable[[], None]) -> None:
        """Queues so much work, and what happens when it is done."""
        self._waiting.append((us, then))
        self._next()

    def _next(self) -> None:
        if self._idle and self._waiting:
            us, then = self._waiting.popleft()
            self._idle = False

            def done() -> None:
                self._idle = True
                then()
                self._next()

            self._after(us, done)


@dataclass(eq=False)
class _Message:
    """A message under way: the process that has its connection, and how many of its texts have no answer yet."""

    receiver: _Interpreter
    unanswered: int


class Server:
    """One process, or fronts and an engine process, in a closed loop of clients that send the next message at once."""

    def __init__(
        self,
        costs: Costs,
        cores: int,
        items: int,
        mean_tokens: int,
        max_batch_tokens: int,
        *,
        in_flight: int,
        fronts: int = 0,
    ) -> None:
        """Prepares a run.

        Args:
            costs: Costs of the parts.
            cores: Batches that are computed at the same time.
            items: Texts per message.
            mean_tokens: Mean tokens per text.
            max_batch_tokens: Batch size limit in tokens.
            in_flight: Texts in flight.
            fronts: Processes that have the connections; with 0 the process that computes has them.
        """
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
        self._engine = _Interpreter(self._after)
        self._receivers = [_Interpreter(self._after) for _ in range(fronts)] or [self._engine]
        # Waiting texts: their tokens and their message.
        self._waiting: deque[tuple[int, _Message]] = deque()
        self._messages = max(1, in_flight // items)

    def items_per_s(self) -> float:
        """Runs the simulation and returns texts per second, once as many are answered as were sent at the start."""
        for receiver, _ in zip(itertools.cycle(self._receivers), range(self._messages), strict=False):
            self._send(receiver)
        while self._answered < self._messages * self._items:
            self._step()
        began_us, answered = self._now_us, self._answered
        while self._now_us < began_us + _SIMULATED_S * 1e6:
            self._step()
        return (self._answered - answered) / (self._now_us - began_us) * 1e6

    def _step(self) -> None:
        self._now_us, _, event = heapq.heappop(self._events)
        event()

    def _after(self, us: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self._now_us + us, next(self._event_numbers), event))

    def _send(self, receiver: _Interpreter) -> None:
        # Half of a message's cost is the request, the other half the response.
        message = _Message(receiver, self._items)
        us = self._half(self._costs.message, self._costs.item)
        receiver.run(us, lambda: self._through_engine(message, self._enqueue))

    def _half(self, message_us: float, item_us: float) -> float:
        return (message_us + self._items * item_us) / 2

    def _through_engine(self, message: _Message, then: Callable[[_Message], None]) -> None:
        """Runs the engine process's part of a front's message, of which one process without fronts has none."""
        if message.receiver is self._engine:
            then(message)
        else:
            us = self._half(self._costs.engine_message, self._costs.engine_item)
            self._engine.run(us, lambda: then(message))

    def _enqueue(self, message: _Message) -> None:
        for _ in range(self._items):
            tokens = max(3, round(self._random.gammavariate(4, self._mean_tokens / 4)))
            self._waiting.append((tokens, message))
        self._start_batches()

    def _start_batches(self) -> None:
        while self._idle_cores and self._waiting:
            self._idle_cores -= 1
            batch = [self._waiting.popleft()]
            tokens = batch[0][0]
            while self._waiting and tokens + self._waiting[0][0] <= self._max_batch_tokens:
                tokens += self._waiting[0][0]
                batch.append(self._waiting.popleft())
            self._compute([message for _, message in batch], tokens)

    def _compute(self, batch: list[_Message], tokens: int) -> None:
        compute_us = self._costs.compute + self._costs.token * tokens

        def computed() -> None:
            self._engine.run(self._costs.batch / 2, postprocessed)

        def postprocessed() -> None:
            self._idle_cores += 1
            for message in batch:
                message.unanswered -= 1
                if not message.unanswered:
                    self._through_engine(message, self._respond)
            self._start_batches()

        self._engine.run(self._costs.batch / 2, lambda: self._after(compute_us, computed))

    def _respond(self, message: _Message) -> None:
        us = self._half(self._costs.message, self._costs.item)
        message.receiver.run(us, lambda: self._answer(message))

    def _answer(self, message: _Message) -> None:
        self._answered += self._items
        self._send(message.receiver)
