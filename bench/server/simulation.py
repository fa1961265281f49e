"""A server whose front takes no time, event by event: passes that take as long as they are told, and the real queue."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass

from polyhead_server.inference.scheduler import BatchLimits, BatchScheduler, Entry, Flow
from polyhead_server.inference.types import ItemOutcome, TokenizedText

# From a message's last answer to the next message.
_AGAIN_S = 0.002
_WARM_S = 10.0


@dataclass(frozen=True)
class Machine:
    """Threads that compute, and microseconds of a pass: for its start, and for each token with padding."""

    threads: int
    start_us: float
    token_us: float

    def seconds(self, tokens: int) -> float:
        """Of a pass."""
        return (self.start_us + self.token_us * tokens) / 1e6


@dataclass(eq=False)
class _Message:
    left: int


def limit(machine: Machine, lengths: Sequence[int], max_tokens: int) -> float:
    """Texts a second of sorted texts."""
    passes: list[list[int]] = [[]]
    for length in sorted(lengths):
        if passes[-1] and (len(passes[-1]) + 1) * length > max_tokens:
            passes.append([])
        passes[-1].append(length)
    return machine.threads * len(lengths) / sum(machine.seconds(len(one) * one[-1]) for one in passes)


class Load:
    """A closed loop."""

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
        self._machine = machine
        self._queue = BatchScheduler(limits)
        self._lengths = itertools.cycle(random.Random(0).sample(lengths, len(lengths)))
        self._items = items
        self._messages = max(1, in_flight // items)
        self._stream = Flow() if one_stream else None
        self._of: dict[int, _Message] = {}

    async def run(self, seconds: float) -> tuple[float, float, float]:
        """Texts a second, padding as a share of the real tokens, and the tokens of a pass in the mean."""
        numbers = itertools.count()
        # When, and the pass that ends then; None for a message that is sent.
        events: list[tuple[float, int, list[Entry] | None]] = [
            (0.0, next(numbers), None) for _ in range(self._messages)
        ]
        idle, answered, real, padded, passes = self._machine.threads, 0, 0, 0, 0
        while events and (now := events[0][0]) < seconds:
            _, _, ended = heapq.heappop(events)
            if ended is None:
                self._send()
            else:
                idle += 1
                finished = self._finish(ended)
                answered += self._items * finished * (now > _WARM_S)
                for _ in range(finished):
                    heapq.heappush(events, (now + _AGAIN_S, next(numbers), None))
            # What is sent at the same moment comes first.
            while idle and self._queue.waiting and not (events and events[0][0] == now and events[0][2] is None):
                entries = self._take(idle)
                idle -= 1
                tokens = len(entries) * max(entry.length for entry in entries)
                if now > _WARM_S:
                    real, padded, passes = real + sum(one.length for one in entries), padded + tokens, passes + 1
                heapq.heappush(events, (now + self._machine.seconds(tokens), next(numbers), entries))
        return answered / (seconds - _WARM_S), padded / real - 1, padded / passes

    def _send(self) -> None:
        message, call, loop = _Message(self._items), self._stream or Flow(whole=True), asyncio.get_running_loop()
        entries = []
        for _ in range(self._items):
            ids = [0] * next(self._lengths)
            future: asyncio.Future[ItemOutcome] = loop.create_future()
            entries.append(Entry(call, TokenizedText((ids,), len(ids)), ids, future, None, 0, 0, 0))
            self._of[id(entries[-1])] = message
        self._queue.put(entries)

    def _take(self, idle: int) -> list[Entry]:
        # The other idle threads wait in the queue as well.
        self._queue._idle_workers = idle - 1
        batch = self._queue.take()
        return batch.entries if batch else []

    def _finish(self, entries: Sequence[Entry]) -> int:
        """Messages whose last answer this is."""
        messages = [self._of.pop(id(entry)) for entry in entries]
        for message in messages:
            message.left -= 1
        return sum(not message.left for message in set(messages))
