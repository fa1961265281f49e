from __future__ import annotations

from polyhead_server.inference.length_buckets import LengthBuckets
from polyhead_server.inference.types import Entry

from tests.support.queue_entries import entry


class Buckets(LengthBuckets):
    """Buckets whose entries can be added in one line; records the entries that are discarded."""

    def __init__(self) -> None:
        self.discarded: list[Entry] = []
        super().__init__(self._record)

    def _record(self, one: Entry) -> None:
        one.waiting = False
        self.discarded.append(one)

    def add(self, length: int, virtual_start: float, number: int = 0) -> Entry:
        one = entry(length)
        one.waiting = True
        self.push(virtual_start, number, one)
        return one

    def leave(self, one: Entry) -> None:
        one.waiting = False
        self.tombstones += 1


async def test_bucket_returns_its_entries_by_virtual_start_and_then_by_number() -> None:
    buckets = Buckets()
    last, first, second = buckets.add(5, 2.0, 1), buckets.add(5, 1.0, 2), buckets.add(5, 1.0, 3)
    assert [buckets.pop(5) for _ in range(3)] == [first, second, last]


async def test_head_is_the_bucket_with_the_smallest_virtual_start() -> None:
    buckets = Buckets()
    buckets.add(5, 3.0)
    buckets.add(6, 1.0)
    buckets.add(7, 2.0)
    assert buckets.head() == 6


async def test_nearest_lists_the_most_similar_lengths_first() -> None:
    buckets = Buckets()
    for length in (10, 30, 24):
        buckets.add(length, 0.0)
    assert buckets.nearest(22) == [24, 30, 10]


async def test_prune_removes_tombstones_from_the_front_and_keeps_those_behind() -> None:
    buckets = Buckets()
    buckets.leave(buckets.add(5, 1.0))
    front = buckets.add(5, 2.0)
    buckets.leave(buckets.add(5, 3.0))
    buckets.prune(5)
    assert buckets.entries()[0] is front
    assert (len(buckets.entries()), buckets.tombstones, buckets.discarded) == (2, 1, [])


async def test_prune_discards_a_cancelled_entry_that_still_waits() -> None:
    buckets = Buckets()
    cancelled = buckets.add(5, 1.0)
    cancelled.future.cancel()
    buckets.prune_all()
    assert buckets.discarded == [cancelled]
    assert (buckets.tombstones, 5 in buckets) == (0, False)


async def test_cancelled_entry_that_was_dropped_is_discarded_once() -> None:
    buckets = Buckets()
    cancelled = buckets.add(5, 1.0)
    cancelled.future.cancel()
    buckets.leave(cancelled)
    buckets.prune_all()
    assert (buckets.discarded, buckets.tombstones) == ([], 0)


async def test_compact_removes_every_tombstone_and_keeps_the_order() -> None:
    buckets = Buckets()
    buckets.leave(buckets.add(6, 0.0))
    added = {start: buckets.add(5, start) for start in (5.0, 1.0, 4.0, 2.0, 3.0)}
    buckets.leave(buckets.add(5, 0.5))
    buckets.compact()
    assert (len(buckets.entries()), buckets.tombstones, 6 in buckets) == (5, 0, False)
    assert [buckets.pop(5) for _ in range(5)] == [added[start] for start in sorted(added)]
