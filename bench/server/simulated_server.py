"""Discrete-event simulation of a server with the real scheduler; only batches take time, and as long as configured."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass

from polyhead_server.inference.scheduler import BatchLimits, BatchScheduler
from polyhead_server.inference.types import Entry, Flow, ItemOutcome, TokenizedText

from bench.harness.upper_bound import batches_of_similar_length

# From the last answer to a message until the client's next message.
_THINK_TIME_S = 0.002
_WARMUP_S = 10.0


@dataclass(frozen=True)
class Machine:
    """Compute threads and the cost of a batch.

    Attributes:
        threads: Threads that compute.
        overhead_us: Fixed cost of a batch in microseconds.
        token_us: Cost of each token in microseconds, padding included.
    """

    threads: int
    overhead_us: float
    token_us: float

    def seconds(self, tokens: int) -> float:
        """Returns the duration of a batch."""
        return (self.overhead_us + self.token_us * tokens) / 1e6


@dataclass(frozen=True)
class Throughput:
    """Result of a simulation after its warm-up.

    Attributes:
        texts_per_s: Texts a second.
        padding: Padding as a share of the real tokens.
        batch_tokens: Mean tokens of a batch, padding included.
    """

    texts_per_s: float
    padding: float
    batch_tokens: float


@dataclass(eq=False)
class _Message:
    unanswered: int


def upper_bound(machine: Machine, lengths: Sequence[int], max_tokens: int) -> float:
    """Returns the texts a second of the same texts sorted by length beforehand, in full batches."""
    batches = batches_of_similar_length([range(length) for length in lengths], max_tokens)
    return machine.threads * len(lengths) / sum(machine.seconds(len(batch) * len(batch[-1])) for batch in batches)


class Simulation:
    """A closed loop of clients, each of which sends its next message when the last one is answered."""

    def __init__(
        self,
        machine: Machine,
        limits: BatchLimits,
        lengths: Sequence[int],
        items: int,
        in_flight: int,
        *,
        one_stream: bool,
    ) -> None:
        """Prepares a run.

        Args:
            machine: Cost model.
            limits: Limits of the scheduler.
            lengths: Lengths of the texts in tokens, drawn in a random order again and again.
            items: Texts per message.
            in_flight: Texts in flight.
            one_stream: Whether all messages belong to one stream; otherwise each is a unary call.
        """
        self._machine = machine
        self._scheduler = BatchScheduler(limits)
        self._lengths = itertools.cycle(random.Random(0).sample(lengths, len(lengths)))
        self._items = items
        self._messages = max(1, in_flight // items)
        self._stream = Flow() if one_stream else None
        self._message_of: dict[int, _Message] = {}

    async def run(self, seconds: float) -> Throughput:
        """Simulates so many seconds, warm-up included."""
        numbers = itertools.count()
        # Time, running number, and the batch that ends then; None for a message that is sent.
        events: list[tuple[float, int, list[Entry] | None]] = [
            (0.0, next(numbers), None) for _ in range(self._messages)
        ]
        idle, answered, real, padded, batches = self._machine.threads, 0, 0, 0, 0
        while events and (now := events[0][0]) < seconds:
            _, _, ended = heapq.heappop(events)
            if ended is None:
                self._send()
            else:
                idle += 1
                finished = self._finish(ended)
                answered += self._items * finished * (now > _WARMUP_S)
                for _ in range(finished):
                    heapq.heappush(events, (now + _THINK_TIME_S, next(numbers), None))
            # Messages that are sent at the same moment come first.
            while idle and self._waiting() and not (events and events[0][0] == now and events[0][2] is None):
                entries = self._scheduler.poll(idle).entries
                idle -= 1
                tokens = len(entries) * max(entry.length for entry in entries)
                if now > _WARMUP_S:
                    real, padded, batches = real + sum(one.length for one in entries), padded + tokens, batches + 1
                heapq.heappush(events, (now + self._machine.seconds(tokens), next(numbers), entries))
        return Throughput(answered / (seconds - _WARMUP_S), padded / real - 1, padded / batches)

    def _waiting(self) -> int:
        return self._scheduler.accounting.waiting_items

    def _send(self) -> None:
        message, flow = _Message(self._items), self._stream or Flow(unary=True)
        entries = []
        for _ in range(self._items):
            ids = [0] * next(self._lengths)
            future: asyncio.Future[ItemOutcome] = asyncio.get_running_loop().create_future()
            entries.append(Entry(flow, TokenizedText((ids,), len(ids)), ids, future, None, 0, 0, 0))
            self._message_of[id(entries[-1])] = message
        self._scheduler.put(entries)

    def _finish(self, entries: Sequence[Entry]) -> int:
        """Ends a batch; returns the number of messages whose last answer was in it."""
        messages = [self._message_of.pop(id(entry)) for entry in entries]
        for message in messages:
            message.unanswered -= 1
        return sum(not message.unanswered for message in set(messages))
