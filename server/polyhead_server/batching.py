"""Who rides together: one queue for all calls and tasks, and batches of texts of about the same length.

A worker that becomes free takes the oldest entry and then its nearest neighbours in length, without waiting for more to
come. Entries that were cancelled or whose deadline passed are let go before anything is computed for them.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from .items import Outcome, Tokens


@dataclass(slots=True, eq=False)
class Entry:
    """One item in the queue.

    Attributes:
        tokens: What the model will read.
        future: Where the outcome goes. Cancelled when the answer is not wanted any more.
        deadline: ``time.monotonic()`` second after which nobody wants the answer; None for no deadline.
        arrived_ns: When its message arrived (``time.monotonic_ns()``).
        tokenized_ns: When its tokens were ready and it entered the queue.
        tokenization_ns: How long its message's tokenization took.
    """

    tokens: Tokens
    future: asyncio.Future[Outcome]
    deadline: float | None
    arrived_ns: int
    tokenized_ns: int
    tokenization_ns: int
    length: int = field(init=False)

    def __post_init__(self) -> None:
        self.length = len(self.tokens.ids)


@dataclass(frozen=True)
class Batch:
    """What a worker is handed: the entries to compute together, and those whose deadline passed while they waited."""

    entries: list[Entry]
    expired: list[Entry]


@dataclass(frozen=True)
class BatchLimits:
    """Bounds of a pass: its tokens with padding, and padding as a share of the real tokens."""

    max_tokens: int
    max_padding: float

    def admit(self, count: int, longest: int, real_tokens: int, budget: int) -> bool:
        """Whether ``count`` texts with ``real_tokens`` together, at most ``longest`` each, may ride together."""
        padded = count * longest
        return padded <= min(self.max_tokens, budget) and padded <= (1 + self.max_padding) * real_tokens


class BatchQueue:
    """Entries in, batches out; safe to use from any thread.

    Entries stand in one lane for each length, in order of arrival, so that the oldest entry and its neighbours in
    length are found without looking at every entry.
    """

    def __init__(self, limits: BatchLimits) -> None:
        self._limits = limits
        self._lanes: dict[int, deque[Entry]] = {}
        self._changed = threading.Condition()
        self._idle_workers = 0
        self._closed = False
        self.waiting_tokens = 0

    def put(self, entries: Iterable[Entry]) -> None:
        """Adds entries and wakes as many workers as may find work."""
        with self._changed:
            for entry in entries:
                self._lanes.setdefault(entry.length, deque()).append(entry)
                self.waiting_tokens += entry.length
            self._changed.notify_all()

    def take(self) -> Batch | None:
        """Waits for work; None when the queue is closed and empty."""
        with self._changed:
            self._idle_workers += 1
            while not self._lanes and not self._closed:
                self._changed.wait()
            expired = self._let_go(time.monotonic())
            batch = Batch(self._choose(), expired) if self._lanes or expired or not self._closed else None
            self._idle_workers -= 1
            return batch

    def close(self) -> None:
        """Lets ``take`` return None once the queue is empty."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _choose(self) -> list[Entry]:
        """Takes the oldest entry and as many of its neighbours in length as may ride with it."""
        if not self._lanes:
            return []
        oldest = min(self._lanes, key=lambda length: self._lanes[length][0].tokenized_ns)
        # Two idle workers with few entries each take their part, instead of one taking all while the other looks on.
        budget = max(-(-self.waiting_tokens // self._idle_workers), oldest)
        batch, longest, real_tokens = [self._pop(oldest)], oldest, oldest
        for length in sorted(self._lanes, key=lambda length: abs(length - oldest)):
            while length in self._lanes:
                longest_with = max(longest, length)
                if not self._limits.admit(len(batch) + 1, longest_with, real_tokens + length, budget):
                    break
                batch.append(self._pop(length))
                longest, real_tokens = longest_with, real_tokens + length
        return batch

    def _let_go(self, now: float) -> list[Entry]:
        """Removes cancelled and expired entries and returns the expired ones."""
        expired: list[Entry] = []
        for length, lane in list(self._lanes.items()):
            kept: deque[Entry] = deque()
            for entry in lane:
                if entry.future.cancelled():
                    continue
                (expired if entry.deadline is not None and entry.deadline <= now else kept).append(entry)
            self.waiting_tokens -= length * (len(lane) - len(kept))
            if kept:
                self._lanes[length] = kept
            else:
                del self._lanes[length]
        return expired

    def _pop(self, length: int) -> Entry:
        lane = self._lanes[length]
        entry = lane.popleft()
        if not lane:
            del self._lanes[length]
        self.waiting_tokens -= length
        return entry
