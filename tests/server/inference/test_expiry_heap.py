from __future__ import annotations

from polyhead_server.inference.expiry_heap import ExpiryHeap

from tests.support.queue_entries import entry


async def test_expired_entries_come_out_by_deadline() -> None:
    heap = ExpiryHeap()
    late, early, later = entry(1), entry(1), entry(1)
    for number, (deadline, one) in enumerate([(2.0, late), (1.0, early), (3.0, later)]):
        heap.push(deadline, number, one)
    assert heap.pop_expired(now=0.999) == []
    assert heap.pop_expired(now=2.0) == [early, late]
    assert len(heap) == 1


async def test_equal_deadlines_come_out_by_number() -> None:
    heap = ExpiryHeap()
    first, second = entry(1), entry(1)
    heap.push(1.0, 2, second)
    heap.push(1.0, 1, first)
    assert heap.pop_expired(now=1.0) == [first, second]


async def test_compact_removes_entries_that_do_not_wait() -> None:
    heap = ExpiryHeap()
    entries = [entry(1) for _ in range(6)]
    for number, one in enumerate(entries):
        one.waiting = number % 2 == 0
        heap.push(float(-number), number, one)
    heap.compact()
    assert heap.pop_expired(now=0.0) == [entries[4], entries[2], entries[0]]
