"""Weighted fair queueing across calls: one queue for all calls and tasks, and batches of similar-length texts.

A compute thread that becomes free takes a head and, of the entries nearest in length, as many as give the most
efficient batch: more texts share the fixed cost of a batch, and add padding. It does not wait for more to arrive.
Entries that were cancelled or whose deadline passed are dropped before anything is computed for them. Of entries with
equal token ids, the first that is taken is computed for all (see ``EqualTexts``).

The head is the entry with the smallest virtual start time (see ``FairClock``), so a single text does not wait behind
thousands that a stream sent before it. Similar-length entries join ahead of their own scheduling slot and are charged
to their own flows. So that no flow pays for long for a share that others could not use, one batch in a few is headed
by the entry that has waited longest.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from .equal_texts import EqualTexts
from .expiry_heap import ExpiryHeap
from .fair_clock import FairClock
from .length_buckets import LengthBuckets
from .token_accounting import TokenAccounting, TokenSnapshot
from .types import Batch, Entry

# One batch in so many is headed by the entry that has waited longest.
_OLDEST_FIRST_INTERVAL = 8
# Tombstones that may be kept beyond the number of waiting entries before they are removed.
_MAX_EXTRA_TOMBSTONES = 1000


@dataclass(frozen=True)
class BatchLimits:
    """Size limits of a batch, and its fixed cost.

    Attributes:
        max_tokens: Batch size limit in tokens, padding included.
        max_padding: Padding limit, as a share of the real tokens.
        overhead_tokens: Fixed cost of a batch, as the number of tokens that are computed in that time.
    """

    max_tokens: int
    max_padding: float
    overhead_tokens: float

    def admit(self, count: int, longest: int, real_tokens: int, budget: int) -> bool:
        """Returns whether ``count`` texts with ``real_tokens`` in total, at most ``longest`` each, may share a batch.

        ``budget`` limits the real tokens as well.
        """
        padded = min(self.max_tokens, (1 + self.max_padding) * real_tokens)
        return count * longest <= padded and real_tokens <= budget

    def efficiency(self, count: int, longest: int, real_tokens: int) -> float:
        """Real tokens divided by the cost of the batch in tokens."""
        return real_tokens / (self.overhead_tokens + count * longest)


@dataclass(frozen=True)
class SchedulerSnapshot:
    """State of a scheduler at one moment.

    Attributes:
        tokens: The token accounting.
        entries: Entries in the length buckets, tombstones included.
        tombstones: Number of those that do not wait any more.
        arrivals: Entries in the list of arrivals, including those that left the queue.
        deadlines: Entries in the expiry heap, including those that left the queue.
        idle_workers: Threads that wait in ``take``.
        keys: Different keys of the entries that wait or are being computed.
    """

    tokens: TokenSnapshot
    entries: tuple[Entry, ...]
    tombstones: int
    arrivals: int
    deadlines: int
    idle_workers: int
    keys: int


class BatchScheduler:
    """Entries in, batches out.

    Threads: every public method takes ``accounting.lock`` and may be called from any thread; private methods require
    the lock. The event loop calls ``put``, ``wake``, ``finish``, ``drop`` and ``close``; compute threads call ``take``,
    or ``wait_for_work`` and then ``poll`` where they need a slot in between. The event loop may cancel an entry's
    future at any moment without the lock, also between two looks at it here, and calls ``drop`` soon after.

    A waiting entry stands in three structures: in the length bucket of its length, in the list of arrivals and, with a
    deadline, in the expiry heap. Its ``waiting`` flag is the truth. An entry that leaves the queue is taken out of one
    structure at most and leaves a stale element in the others:

    - taken as the front of its bucket: stale in arrivals and expiry heap;
    - taken as the oldest: stale in its bucket (a tombstone) and in the expiry heap;
    - expired: stale in its bucket (a tombstone) and in arrivals;
    - dropped, or answered with an equal entry: stale in its bucket (a tombstone), in arrivals and in the expiry heap.

    Stale elements are skipped wherever they come to the front. ``put`` removes them all when they outnumber the waiting
    entries by ``_MAX_EXTRA_TOMBSTONES``, which costs little per entry.

    Attributes:
        accounting: Counts what waits, per flow and in total.
    """

    def __init__(self, limits: BatchLimits) -> None:
        self.accounting = TokenAccounting()
        self._limits = limits
        self._clock = FairClock()
        self._buckets = LengthBuckets(self._discard)
        self._expiry = ExpiryHeap()
        self._equal = EqualTexts(self.accounting)
        # In order of arrival.
        self._arrivals: deque[Entry] = deque()
        self._slots = itertools.count(1)
        self._numbers = itertools.count()
        self._changed = threading.Condition(self.accounting.lock)
        self._idle_workers = self._sleeping_workers = 0
        self._closed = False

    def put(self, entries: Iterable[Entry]) -> bool:
        """Adds entries; returns whether workers sleep, which ``wake`` must wake then.

        An entry that is equal to one in computation does not wait: it is added to the ``shared`` entries of that one.
        """
        with self._changed:
            for entry in entries:
                if not self._equal.join(entry):
                    self._push(entry)
            self._compact()
            return self._sleeping_workers > 0

    def wake(self) -> None:
        """Wakes as many sleeping workers as may find work."""
        with self._changed:
            # Each worker that wakes competes for the interpreter, also one that finds nothing to do.
            self._changed.notify(self.accounting.waiting_items)

    def take(self) -> Batch | None:
        """Waits for work and returns a batch; returns None when the scheduler is closed and empty."""
        with self._changed:
            self._idle_workers += 1
            while not self.accounting.waiting_items and not self._closed:
                self._sleep()
            batch = self._next_batch(self._idle_workers)
            self._idle_workers -= 1
            return batch if batch.entries or batch.expired or not self._closed else None

    def wait_for_work(self) -> bool:
        """Waits until an entry waits; returns False when the scheduler is closed and empty."""
        with self._changed:
            while not self.accounting.waiting_items and not self._closed:
                self._sleep()
            return bool(self.accounting.waiting_items)

    def poll(self, idle_workers: int) -> Batch:
        """Returns a batch without waiting, as ``take`` does when so many workers are idle; it may be empty."""
        with self._changed:
            return self._next_batch(idle_workers)

    def drop(self, entry: Entry) -> None:
        """Removes an entry whose answer is not wanted any more; does nothing when it has left the queue."""
        with self._changed:
            self._tombstone(entry)

    def finish(self, entries: Iterable[Entry]) -> None:
        """Ends the computation of entries that were taken; their ``shared`` does not grow any more."""
        with self._changed:
            for entry in entries:
                self._equal.finish(entry)

    def close(self) -> None:
        """Lets ``take`` return None once the queue is empty."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def snapshot(self) -> SchedulerSnapshot:
        """Returns the state at this moment."""
        with self._changed:
            return SchedulerSnapshot(
                self.accounting.snapshot(),
                tuple(self._buckets.entries()),
                self._buckets.tombstones,
                len(self._arrivals),
                len(self._expiry),
                self._idle_workers,
                len(self._equal),
            )

    def _sleep(self) -> None:
        """Waits for ``wake`` or ``close``."""
        self._sleeping_workers += 1
        self._changed.wait()
        self._sleeping_workers -= 1

    def _push(self, entry: Entry) -> None:
        number = next(self._numbers)
        self._buckets.push(self._clock.start(entry.flow, entry.length), number, entry)
        self._arrivals.append(entry)
        if entry.deadline is not None:
            self._expiry.push(entry.deadline, number, entry)
        self.accounting.enqueue(entry)

    def _next_batch(self, idle_workers: int) -> Batch:
        expired = self._expire()
        entries = self._choose(idle_workers)
        return Batch(entries, expired, self.accounting.waiting_tokens >= self._limits.max_tokens)

    def _expire(self) -> list[Entry]:
        """Removes the entries whose deadline has passed; returns those whose answer is still wanted."""
        expired = self._expiry.pop_expired(time.monotonic())
        return [entry for entry in expired if self._tombstone(entry) and not entry.future.cancelled()]

    def _choose(self, idle_workers: int) -> list[Entry]:
        """Takes the head of the next batch and the similar-length entries that should share the batch."""
        self._buckets.prune_all()
        if not self.accounting.waiting_items:
            return []
        waiting_tokens, head = self.accounting.waiting_tokens, self._take_head()
        # Two idle workers with few entries take a part each, instead of one taking all while the other idles.
        budget = max(-(-waiting_tokens // idle_workers), head.length)
        # The event loop may have cancelled some of them meanwhile.
        lengths = self._select_lengths(head.length, budget)
        return [head, *(self._take_front(length) for length in lengths if length in self._buckets)]

    def _select_lengths(self, head: int, budget: int) -> list[int]:
        """Returns the length of each entry that should share a batch with a head of length ``head``, nearest first.

        Entries are added from the nearest length on while the limits admit them; the most efficient prefix counts.
        """
        limits, lengths = self._limits, []
        count, longest, real_tokens, best = 1, head, head, limits.efficiency(1, head, head)
        selected = 0
        for length in self._buckets.nearest(head):
            longest_with = max(longest, length)
            for _, _, entry in self._buckets.bucket(length):
                if not entry.waiting or (entry.twins and self._equal.is_duplicate(entry)):
                    continue
                if not limits.admit(count + 1, longest_with, real_tokens + length, budget):
                    break
                count, longest, real_tokens = count + 1, longest_with, real_tokens + length
                lengths.append(length)
                efficiency = limits.efficiency(count, longest, real_tokens)
                if efficiency >= best:
                    best, selected = efficiency, len(lengths)
        return lengths[:selected]

    def _take_head(self) -> Entry:
        """Takes the entry with the smallest virtual start time or, in every eighth scheduling slot, the oldest."""
        oldest = self._oldest()
        if oldest is None or next(self._slots) % _OLDEST_FIRST_INTERVAL:
            return self._take_front(self._buckets.head())
        self._arrivals.popleft()
        self._serve(oldest)
        self._buckets.tombstones += 1
        self._buckets.prune(oldest.length)
        return oldest

    def _oldest(self) -> Entry | None:
        # The event loop may cancel any of them at any moment, also the last one that waits.
        while self._arrivals and (not self._arrivals[0].waiting or self._arrivals[0].future.cancelled()):
            self._arrivals.popleft()
        return self._arrivals[0] if self._arrivals else None

    def _take_front(self, length: int) -> Entry:
        entry = self._buckets.pop(length)
        self._serve(entry)
        self._buckets.prune(length)
        return entry

    def _serve(self, entry: Entry) -> None:
        self._clock.advance(entry.length, self.accounting.waiting_flows)
        self.accounting.take(entry)
        for other in self._equal.take(entry):
            self._remove(other)
            self._buckets.tombstones += 1

    def _tombstone(self, entry: Entry) -> bool:
        """Removes a waiting entry that stays in its bucket; returns whether it was waiting."""
        if not entry.waiting:
            return False
        self._discard(entry)
        self._buckets.tombstones += 1
        return True

    def _discard(self, entry: Entry) -> None:
        """Removes a waiting entry that will not be answered."""
        self._equal.leave(entry)
        self._remove(entry)

    def _remove(self, entry: Entry) -> None:
        """Removes a waiting entry that will not be computed; its flow is not charged for it."""
        self.accounting.remove(entry)
        self._clock.refund(entry.flow, entry.length)

    def _compact(self) -> None:
        """Removes all stale elements when there are so many that this costs little per entry."""
        waiting = self.accounting.waiting_items
        if self._buckets.tombstones > waiting + _MAX_EXTRA_TOMBSTONES:
            self._buckets.compact()
            self._arrivals = deque(entry for entry in self._arrivals if entry.waiting)
        if len(self._expiry) > 2 * waiting + _MAX_EXTRA_TOMBSTONES:
            self._expiry.compact()
