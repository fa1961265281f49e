"""How streams wait for capacity in the queue."""

from __future__ import annotations

import asyncio

import pytest
from polyhead_server.inference.admission import Admission
from polyhead_server.inference.scheduler import BatchLimits, BatchScheduler
from polyhead_server.inference.types import Flow

from tests.support.queue_entries import admits, put, sizes


@pytest.fixture
async def scheduler() -> BatchScheduler:
    return BatchScheduler(BatchLimits(max_tokens=10_000, max_padding=0.12, overhead_tokens=16))


async def test_stream_waits_for_capacity_and_is_woken(admission: Admission, scheduler: BatchScheduler) -> None:
    stream = Flow()
    put(scheduler, 3000)
    put(scheduler, 1001, stream)
    waiting = asyncio.ensure_future(admission.wait_for_capacity(stream))
    await asyncio.sleep(0)
    admission.wake()
    await asyncio.sleep(0)
    assert not waiting.done()
    scheduler.take()
    admission.wake()
    await asyncio.wait_for(waiting, 10)


async def test_stream_continues_while_half_of_the_queue_is_free(scheduler: BatchScheduler) -> None:
    admission = Admission(scheduler.accounting, 1, max_queue_s=10, max_queue_tokens=10_000, tokens_per_s=1000)
    stream = Flow()
    put(scheduler, 5000, stream)
    await asyncio.wait_for(admission.wait_for_capacity(stream), 10)


async def test_stream_with_nothing_in_the_queue_does_not_wait(admission: Admission, scheduler: BatchScheduler) -> None:
    put(scheduler, 20_000)
    await asyncio.wait_for(admission.wait_for_capacity(Flow()), 10)


async def test_streams_leave_half_of_the_queue_to_unary_calls(scheduler: BatchScheduler) -> None:
    admission = Admission(scheduler.accounting, 1, max_queue_s=1e9, max_queue_tokens=10_000, tokens_per_s=1000)
    stream = Flow()
    put(scheduler, 5001, stream)
    assert not admission.has_capacity(stream)
    waiting = asyncio.ensure_future(admission.wait_for_capacity(stream))
    await asyncio.sleep(0)
    assert not waiting.done()
    assert admits(admission, 4999)
    waiting.cancel()


async def test_stream_is_woken_when_reserved_texts_never_reach_the_queue(
    admission: Admission, scheduler: BatchScheduler
) -> None:
    stream, other = Flow(), Flow()
    put(scheduler, 1010, stream)
    admission.admit(other, sizes(8000), None, blocking=True)
    waiting = asyncio.ensure_future(admission.wait_for_capacity(stream))
    await asyncio.sleep(0)
    assert not waiting.done()
    admission.release(other, sizes(8000))
    await asyncio.wait_for(waiting, 10)


async def test_next_stream_is_woken_after_the_first_has_reserved(
    admission: Admission, scheduler: BatchScheduler
) -> None:
    other = Flow()
    admission.admit(other, sizes(8000), None, blocking=True)
    woken: list[bool] = []

    async def admit_next(stream: Flow) -> None:
        await admission.wait_for_capacity(stream)
        woken.append(admission.admit(stream, sizes(1990), None, blocking=True) == (1, None))

    streams = [Flow() for _ in range(3)]
    for stream in streams:
        put(scheduler, 600, stream)
        put(scheduler, 1)
    waiting = [asyncio.ensure_future(admit_next(stream)) for stream in streams]
    await asyncio.sleep(0)
    admission.release(other, sizes(8000))
    for _ in range(10):
        await asyncio.sleep(0)
    # The others were not woken in vain: each of them would hold its share of the 2,000 tokens for streams already.
    assert [task.done() for task in waiting] == [True, False, False]
    assert woken == [True]
    for task in waiting:
        task.cancel()


async def test_cancelled_stream_does_not_disturb_other_waiters(admission: Admission, scheduler: BatchScheduler) -> None:
    stream, full = Flow(), Flow()
    put(scheduler, 1010, stream)
    admission.admit(full, sizes(8000), None, blocking=True)
    cancelled, other = (asyncio.ensure_future(admission.wait_for_capacity(stream)) for _ in range(2))
    await asyncio.sleep(0)
    cancelled.cancel()
    await asyncio.sleep(0)
    admission.release(full, sizes(8000))
    await asyncio.wait_for(other, 10)


async def test_streams_are_looked_at_once_for_all_entries_that_leave_together(
    admission: Admission, scheduler: BatchScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[Flow] = []
    streams = [Flow() for _ in range(10)]
    for stream in streams:
        put(scheduler, 1000, stream)
    waiting = [asyncio.ensure_future(admission.wait_for_capacity(stream)) for stream in streams]
    await asyncio.sleep(0)

    def look(_: Admission, flow: Flow) -> bool:
        looks.append(flow)
        return False

    monkeypatch.setattr(Admission, "has_capacity", look)
    for _ in range(100):
        admission.wake()
    await asyncio.sleep(0)
    assert looks == streams
    for task in waiting:
        task.cancel()
