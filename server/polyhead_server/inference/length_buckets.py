"""Waiting entries grouped by length, so that the scheduler finds similar-length entries without a scan of the queue."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence

from .types import Entry

# Virtual start time, running number, entry. The number decides between equal start times: entries are never compared.
Ranked = tuple[float, int, Entry]


class LengthBuckets:
    """One heap per length, ordered by virtual start time.

    Entries are removed lazily. ``pop`` takes the front of a bucket out at once; an entry that leaves the queue from
    anywhere else stays in its bucket as a tombstone: an element whose ``waiting`` is False.

    Invariants:

    - ``tombstones`` is the number of elements whose ``waiting`` is False.
    - No bucket is empty.
    - After ``prune``, the front of each bucket waits and, at that moment, is not cancelled. The event loop may cancel
      any future at any later moment; ``pop`` hands such an entry out like any other.

    Not thread-safe: the scheduler calls it under its lock.
    """

    def __init__(self, discard: Callable[[Entry], None]) -> None:
        """Creates an empty set of buckets.

        Args:
            discard: Called for a waiting entry that ``prune`` finds cancelled; must remove it from the accounting.
        """
        self._discard = discard
        self._buckets: dict[int, list[Ranked]] = {}
        self.tombstones = 0

    def __contains__(self, length: int) -> bool:
        return length in self._buckets

    def entries(self) -> list[Entry]:
        """All elements, tombstones included."""
        return [entry for bucket in self._buckets.values() for _, _, entry in bucket]

    def push(self, virtual_start: float, number: int, entry: Entry) -> None:
        """Adds a waiting entry."""
        bucket = self._buckets.get(entry.length)
        if bucket is None:
            bucket = self._buckets[entry.length] = []
        heapq.heappush(bucket, (virtual_start, number, entry))

    def head(self) -> int:
        """Length of the bucket whose front has the smallest virtual start time; call ``prune_all`` before."""
        buckets = self._buckets
        return min(buckets, key=lambda length: buckets[length][0])

    def pop(self, length: int) -> Entry:
        """Takes the front of a bucket out."""
        return heapq.heappop(self._buckets[length])[2]

    def nearest(self, length: int) -> list[int]:
        """Lengths of all buckets, the most similar to ``length`` first."""
        return sorted(self._buckets, key=lambda other: abs(other - length))

    def bucket(self, length: int) -> Sequence[Ranked]:
        """Elements of one bucket in no particular order, tombstones included; read-only."""
        return self._buckets[length]

    def prune_all(self) -> None:
        """Prunes every bucket."""
        for length, bucket in list(self._buckets.items()):
            front = bucket[0][2]
            # Most fronts stay, and a call for each would cost more than everything else here.
            if not front.waiting or front.future.cancelled():
                self.prune(length)

    def prune(self, length: int) -> None:
        """Removes tombstones and cancelled entries from the front of a bucket, and the bucket when it is empty."""
        bucket = self._buckets[length]
        while bucket and (not bucket[0][2].waiting or bucket[0][2].future.cancelled()):
            _, _, entry = heapq.heappop(bucket)
            if entry.waiting:
                self._discard(entry)
            else:
                self.tombstones -= 1
        if not bucket:
            del self._buckets[length]

    def compact(self) -> None:
        """Removes all tombstones."""
        buckets = {length: [one for one in bucket if one[2].waiting] for length, bucket in self._buckets.items()}
        self._buckets = {length: bucket for length, bucket in buckets.items() if bucket}
        for bucket in self._buckets.values():
            heapq.heapify(bucket)
        self.tombstones = 0
