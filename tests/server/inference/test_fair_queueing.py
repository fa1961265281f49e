"""Whose turn it is, and who pays for what rides along."""

from __future__ import annotations

import random

from polyhead_server.inference.scheduler import BatchLimits, BatchScheduler, Flow

from tests.server.conftest import entry, lengths


async def test_oldest_entry_is_never_passed_over(queue: BatchScheduler) -> None:
    queue.put([entry(90)])
    queue.put([entry(10) for _ in range(50)])
    assert lengths(queue.take()) == [90]


async def test_single_text_does_not_wait_behind_what_a_stream_sent_before(queue: BatchScheduler) -> None:
    stream, single = Flow(), Flow()
    queue.put([entry(90, call=stream) for _ in range(50)])
    queue.take()
    queue.put([entry(50, call=single)])
    # The stream was served a text more than the other call, which is next.
    assert [lengths(queue.take()) for _ in range(2)] in ([[50], [90]], [[90], [50]])


async def test_calls_that_wait_share_the_tokens(queue: BatchScheduler) -> None:
    long, short = Flow(), Flow()
    queue.put([entry(80, call=long) for _ in range(20)])
    queue.put([entry(40, call=short) for _ in range(100)])
    taken = [lengths(queue.take()) for _ in range(21)]
    tokens = {length: sum(map(sum, (batch for batch in taken if batch[0] == length))) for length in (80, 40)}
    assert 0.8 < tokens[80] / tokens[40] < 1.25


async def test_stream_is_not_starved_by_calls_that_keep_coming(queue: BatchScheduler) -> None:
    stream = Flow()
    queue.put([entry(80, call=stream) for _ in range(10)])
    taken = []
    for _ in range(60):
        queue.put([entry(40), entry(40)])
        taken.append(lengths(queue.take()))
    assert taken.count([80]) >= 3


async def test_many_streams_of_one_text_each_are_served_alike() -> None:
    queue = BatchScheduler(BatchLimits(max_tokens=512, max_padding=0.12, overhead_tokens=16))
    rng, streams, waits, asked = random.Random(0), [Flow() for _ in range(300)], [], {}
    coming = list(streams)
    for number in range(1000):
        asked.update(dict.fromkeys(map(id, coming), number))
        queue.put([entry(int(rng.triangular(5, 120, 20)), call=call) for call in coming])
        batch = queue.take()
        assert batch is not None
        coming = [one.call for one in batch.entries]
        waits += [number - asked[id(call)] for call in coming]
    waits += [1000 - asked[id(call)] for call in streams]
    assert max(waits) < 3 * sum(waits) / len(waits)


async def test_stream_pays_for_its_burst_also_when_nothing_of_it_waits() -> None:
    queue = BatchScheduler(BatchLimits(max_tokens=512, max_padding=0.12, overhead_tokens=16))
    burst, others = Flow(), [Flow() for _ in range(5)]
    tokens = dict.fromkeys(map(id, [burst, *others]), 0)
    for _ in range(400):
        if not burst.waiting_tokens:
            queue.put([entry(10, call=burst) for _ in range(51)])
        queue.put([entry(100, call=call) for call in others if not call.waiting_tokens])
        batch = queue.take()
        assert batch is not None
        for one in batch.entries:
            tokens[id(one.call)] += one.length
    mean = sum(tokens[id(call)] for call in others) / len(others)
    assert tokens[id(burst)] < 2 * mean


async def test_items_of_a_call_keep_their_order(queue: BatchScheduler) -> None:
    stream = Flow()
    entries = [entry(90, call=stream) for _ in range(20)]
    queue.put(entries)
    queue.put([entry(90) for _ in range(20)])
    queue.close()
    taken = [one for batch in iter(queue.take, None) for one in batch.entries]
    assert [one for one in taken if one.call is stream] == entries


async def test_call_does_not_pay_for_what_was_not_computed(queue: BatchScheduler) -> None:
    stream, other = Flow(), Flow()
    gone = [entry(90, call=stream) for _ in range(50)]
    queue.put(gone)
    for one in gone:
        queue.drop(one)
    queue.put([entry(90, call=other) for _ in range(10)])
    queue.put([entry(80, call=stream)])
    assert [80] in [lengths(queue.take()) for _ in range(3)]


async def test_call_does_not_pay_for_long_for_what_others_could_not_use() -> None:
    """Of long texts by many, and short ones by one call, which ride along with whatever short text there is."""
    queue = BatchScheduler(BatchLimits(max_tokens=512, max_padding=0.12, overhead_tokens=16))
    riding, waiting_long = Flow(), 0
    short = 0
    gaps, gap = [], 0
    for number in range(2000):
        queue.put([entry(10, call=riding) for _ in range(512 - short)])
        queue.put([entry(100) for _ in range(8 - waiting_long)])
        short, waiting_long = 512, 8
        if number < 1000:
            queue.put([entry(10)])
        batch = queue.take()
        assert batch is not None
        taken = sum(one.call is riding for one in batch.entries)
        short -= taken
        waiting_long -= sum(one.length == 100 for one in batch.entries)
        gap = 0 if taken else gap + 1
        gaps.append(gap)
    assert max(gaps) <= 8
