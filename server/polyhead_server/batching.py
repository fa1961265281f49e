"""Who rides together: one queue for all calls and tasks, and batches of texts of about the same length.

A worker that becomes free takes the oldest entry and then its nearest neighbours in length, without waiting for more to
come. Entries that were cancelled or whose deadline passed are let go before anything is computed for them.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import threading
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from .items import Outcome, Tokens

# So many entries that have left may be remembered, besides as many as wait, before they are cleared away.
_REMEMBERED = 1000


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
        length: Tokens that the model will read.
        waiting: Whether it is in the queue; the queue's own business.
    """

    tokens: Tokens
    future: asyncio.Future[Outcome]
    deadline: float | None
    arrived_ns: int
    tokenized_ns: int
    tokenization_ns: int
    length: int = field(init=False)
    waiting: bool = field(init=False, default=False)

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

    Entries stand in one lane for each length, in order of arrival, and those with a deadline also in a heap, so that
    the oldest entry, its neighbours in length and what has expired are found without looking at every entry. What was
    cancelled or has expired is only marked, and passed over when its turn comes.
    """

    def __init__(self, limits: BatchLimits) -> None:
        self._limits = limits
        self._lanes: dict[int, deque[Entry]] = {}
        self._deadlines: list[tuple[float, int, Entry]] = []
        self._numbers = itertools.count()
        self._changed = threading.Condition()
        self._idle_workers = 0
        self._closed = False
        self._waiting = 0
        # Entries in the lanes that are only marked.
        self._marked = 0
        self.waiting_tokens = 0

    def put(self, entries: Iterable[Entry]) -> None:
        """Adds entries and wakes as many workers as may find work."""
        with self._changed:
            for entry in entries:
                self._lanes.setdefault(entry.length, deque()).append(entry)
                if entry.deadline is not None:
                    heapq.heappush(self._deadlines, (entry.deadline, next(self._numbers), entry))
                entry.waiting = True
                self._waiting += 1
                self.waiting_tokens += entry.length
            self._clear_away()
            self._changed.notify_all()

    def take(self) -> Batch | None:
        """Waits for work; None when the queue is closed and empty."""
        with self._changed:
            self._idle_workers += 1
            while not self._waiting and not self._closed:
                self._changed.wait()
            expired = self._expire(time.monotonic())
            entries = self._choose()
            self._idle_workers -= 1
            return Batch(entries, expired) if entries or expired or not self._closed else None

    def drop(self, entry: Entry) -> None:
        """Lets an entry go whose answer is not wanted any more; nothing happens when it has left."""
        with self._changed:
            self._mark(entry)

    def close(self) -> None:
        """Lets ``take`` return None once the queue is empty."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _expire(self, now: float) -> list[Entry]:
        """Lets go those whose deadline has passed."""
        expired = []
        while self._deadlines and self._deadlines[0][0] <= now:
            _, _, entry = heapq.heappop(self._deadlines)
            if self._mark(entry) and not entry.future.cancelled():
                expired.append(entry)
        return expired

    def _choose(self) -> list[Entry]:
        """Takes the oldest entry and as many of its neighbours in length as may ride with it."""
        for length in list(self._lanes):
            self._pass_over(length)
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

    def _pop(self, length: int) -> Entry:
        entry = self._lanes[length].popleft()
        self._leave(entry)
        self._pass_over(length)
        return entry

    def _pass_over(self, length: int) -> None:
        """Removes from the front of a lane what need not be computed, and the lane when nothing is left."""
        lane = self._lanes[length]
        while lane and (not lane[0].waiting or lane[0].future.cancelled()):
            # It may have been cancelled a moment ago.
            self._mark(lane[0])
            lane.popleft()
            self._marked -= 1
        if not lane:
            del self._lanes[length]

    def _mark(self, entry: Entry) -> bool:
        """Counts an entry of a lane as gone; returns whether it was waiting."""
        if entry.waiting:
            self._leave(entry)
            self._marked += 1
            return True
        return False

    def _leave(self, entry: Entry) -> None:
        entry.waiting = False
        self._waiting -= 1
        self.waiting_tokens -= entry.length

    def _clear_away(self) -> None:
        """Forgets entries that have left, when there are so many that this costs little for each of them."""
        if self._marked > self._waiting + _REMEMBERED:
            lanes = {length: deque(entry for entry in lane if entry.waiting) for length, lane in self._lanes.items()}
            self._lanes = {length: lane for length, lane in lanes.items() if lane}
            self._marked = 0
        if len(self._deadlines) > 2 * self._waiting + _REMEMBERED:
            self._deadlines = [one for one in self._deadlines if one[2].waiting]
            heapq.heapify(self._deadlines)
