"""Which entry heads a batch, and which flow is charged for the entries that share the batch."""

from __future__ import annotations

import random

from polyhead_server.inference.scheduler import BatchLimits, BatchScheduler
from polyhead_server.inference.types import Flow

from tests.support.queue_entries import entry, lengths


async def test_oldest_entry_heads_every_eighth_batch(scheduler: BatchScheduler) -> None:
    stream = Flow()
    first, oldest = entry(90, flow=stream), entry(90, flow=stream)
    scheduler.put([first, oldest])
    # Each of these is ahead of the stream's second entry in virtual time, for the stream was charged for its first.
    scheduler.put([entry(90) for _ in range(50)])
    batches = [scheduler.take() for _ in range(8)]
    heads = [batch.entries[0] for batch in batches if batch]
    assert heads[0] is first
    assert oldest not in heads[1:7]
    assert heads[7] is oldest


async def test_cancelled_entry_is_not_taken_as_the_oldest(scheduler: BatchScheduler) -> None:
    stream = Flow()
    first, cancelled, oldest = (entry(90, flow=stream) for _ in range(3))
    scheduler.put([first, cancelled, oldest])
    scheduler.put([entry(90) for _ in range(50)])
    batches = [scheduler.take() for _ in range(7)]
    # The event loop has not called ``drop`` yet.
    cancelled.future.cancel()
    batches.append(scheduler.take())
    heads = [batch.entries[0] for batch in batches if batch]
    assert heads[0] is first
    assert heads[7] is oldest


async def test_oldest_entry_is_not_computed_twice(scheduler: BatchScheduler) -> None:
    stream = Flow()
    scheduler.put([entry(90, flow=stream) for _ in range(5)])
    scheduler.put([entry(90) for _ in range(20)])
    scheduler.close()
    taken = [one for batch in iter(scheduler.take, None) for one in batch.entries]
    assert len(set(map(id, taken))) == len(taken) == 25


async def test_single_text_does_not_wait_behind_an_earlier_burst_of_a_stream(scheduler: BatchScheduler) -> None:
    stream, single = Flow(), Flow()
    scheduler.put([entry(90, flow=stream) for _ in range(50)])
    scheduler.take()
    scheduler.put([entry(50, flow=single)])
    # The stream was served one text more than the other flow, which is next or next but one.
    assert [lengths(scheduler.take()) for _ in range(2)] in ([[50], [90]], [[90], [50]])


async def test_waiting_flows_share_the_tokens_equally(scheduler: BatchScheduler) -> None:
    long, short = Flow(), Flow()
    scheduler.put([entry(80, flow=long) for _ in range(20)])
    scheduler.put([entry(40, flow=short) for _ in range(100)])
    taken = [lengths(scheduler.take()) for _ in range(21)]
    tokens = {length: sum(map(sum, (batch for batch in taken if batch[0] == length))) for length in (80, 40)}
    assert 0.8 < tokens[80] / tokens[40] < 1.25


async def test_new_flow_is_not_preferred_to_a_flow_that_was_served_its_share(scheduler: BatchScheduler) -> None:
    stream = Flow()
    entries = [entry(90, flow=stream) for _ in range(4)]
    scheduler.put(entries)
    for _ in range(3):
        scheduler.take()
    new = entry(90)
    scheduler.put([new])
    # Nobody else waited while the stream was served, so its last entry is due now, like the new one, and older.
    heads = [batch.entries[0] for batch in (scheduler.take(), scheduler.take()) if batch]
    assert heads[0] is entries[3]
    assert heads[1] is new


async def test_stream_is_not_starved_by_calls_that_keep_arriving(scheduler: BatchScheduler) -> None:
    stream = Flow()
    scheduler.put([entry(80, flow=stream) for _ in range(10)])
    taken = []
    for _ in range(60):
        scheduler.put([entry(40), entry(40)])
        taken.append(lengths(scheduler.take()))
    assert taken.count([80]) >= 3


async def test_streams_with_one_text_in_flight_wait_about_equally_long() -> None:
    scheduler = BatchScheduler(BatchLimits(max_tokens=512, max_padding=0.12, overhead_tokens=16))
    rng, streams, waits, submitted = random.Random(0), [Flow() for _ in range(300)], [], {}
    arriving = list(streams)
    for number in range(1000):
        submitted.update(dict.fromkeys(map(id, arriving), number))
        scheduler.put([entry(int(rng.triangular(5, 120, 20)), flow=flow) for flow in arriving])
        batch = scheduler.take()
        assert batch is not None
        arriving = [one.flow for one in batch.entries]
        waits += [number - submitted[id(flow)] for flow in arriving]
    waits += [1000 - submitted[id(flow)] for flow in streams]
    assert max(waits) < 3 * sum(waits) / len(waits)


async def test_stream_is_charged_for_its_burst_also_once_none_of_it_waits() -> None:
    scheduler = BatchScheduler(BatchLimits(max_tokens=512, max_padding=0.12, overhead_tokens=16))
    burst, others = Flow(), [Flow() for _ in range(5)]
    tokens = dict.fromkeys(map(id, [burst, *others]), 0)
    for _ in range(400):
        if not burst.waiting_tokens:
            scheduler.put([entry(10, flow=burst) for _ in range(51)])
        scheduler.put([entry(100, flow=flow) for flow in others if not flow.waiting_tokens])
        batch = scheduler.take()
        assert batch is not None
        for one in batch.entries:
            tokens[id(one.flow)] += one.length
    mean = sum(tokens[id(flow)] for flow in others) / len(others)
    assert tokens[id(burst)] < 2 * mean


async def test_entries_of_a_flow_keep_their_order(scheduler: BatchScheduler) -> None:
    stream = Flow()
    entries = [entry(90, flow=stream) for _ in range(20)]
    scheduler.put(entries)
    scheduler.put([entry(90) for _ in range(20)])
    scheduler.close()
    taken = [one for batch in iter(scheduler.take, None) for one in batch.entries]
    assert [one for one in taken if one.flow is stream] == entries


async def test_flow_is_not_charged_for_dropped_entries(scheduler: BatchScheduler) -> None:
    stream, other = Flow(), Flow()
    dropped = [entry(90, flow=stream) for _ in range(50)]
    scheduler.put(dropped)
    for one in dropped:
        scheduler.drop(one)
    scheduler.put([entry(90, flow=other) for _ in range(10)])
    scheduler.put([entry(80, flow=stream)])
    assert [80] in [lengths(scheduler.take()) for _ in range(3)]


async def test_flow_is_not_charged_for_long_for_a_share_that_others_could_not_use() -> None:
    """Many flows send long texts, and one flow short ones, which share a batch with every other short text."""
    scheduler = BatchScheduler(BatchLimits(max_tokens=512, max_padding=0.12, overhead_tokens=16))
    sharing, waiting_long = Flow(), 0
    short = 0
    gaps, gap = [], 0
    for number in range(2000):
        scheduler.put([entry(10, flow=sharing) for _ in range(512 - short)])
        scheduler.put([entry(100) for _ in range(8 - waiting_long)])
        short, waiting_long = 512, 8
        if number < 1000:
            scheduler.put([entry(10)])
        batch = scheduler.take()
        assert batch is not None
        taken = sum(one.flow is sharing for one in batch.entries)
        short -= taken
        waiting_long -= sum(one.length == 100 for one in batch.entries)
        gap = 0 if taken else gap + 1
        gaps.append(gap)
    assert max(gaps) <= 8
