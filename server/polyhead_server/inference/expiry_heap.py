"""Waiting entries ordered by deadline."""

from __future__ import annotations

import heapq

from .types import Entry


class ExpiryHeap:
    """Finds the entries whose deadline has passed; holds only entries that have a deadline.

    An entry that leaves the queue for any other reason stays here until its deadline or until ``compact``.

    Not thread-safe: the scheduler calls it under its lock.
    """

    def __init__(self) -> None:
        # Deadline, running number, entry. The number decides between equal deadlines: entries are never compared.
        self._heap: list[tuple[float, int, Entry]] = []

    def __len__(self) -> int:
        return len(self._heap)

    def push(self, deadline: float, number: int, entry: Entry) -> None:
        """Adds an entry that expires at ``deadline``, in seconds of ``time.monotonic()``."""
        heapq.heappush(self._heap, (deadline, number, entry))

    def pop_expired(self, now: float) -> list[Entry]:
        """Takes out the entries whose deadline is ``now`` or earlier, those that left the queue before included."""
        expired = []
        while self._heap and self._heap[0][0] <= now:
            expired.append(heapq.heappop(self._heap)[2])
        return expired

    def compact(self) -> None:
        """Removes the entries that do not wait any more."""
        self._heap = [one for one in self._heap if one[2].waiting]
        heapq.heapify(self._heap)
