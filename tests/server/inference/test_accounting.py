from __future__ import annotations

import random
import threading

from polyhead_server.inference.token_accounting import TokenAccounting
from polyhead_server.inference.types import Entry, EstimatedSize, Flow

from tests.support.queue_entries import entry


async def test_counters_are_the_sums_over_flows_and_entries_after_any_change() -> None:
    rng, accounting = random.Random(0), TokenAccounting()
    flows = [Flow(unary=bool(number % 2)) for number in range(4)]
    waiting: list[Entry] = []
    for _ in range(500):
        if waiting and rng.random() < 0.5:
            change = accounting.take if rng.random() < 0.5 else accounting.remove
            change(waiting.pop(rng.randrange(len(waiting))))
        else:
            waiting.append(entry(rng.randint(1, 9), flow=rng.choice(flows)))
            accounting.enqueue(waiting[-1])
        assert all(one.waiting for one in waiting)
        assert accounting.waiting_items == len(waiting)
        assert accounting.waiting_tokens == sum(one.length for one in waiting) == sum(f.waiting_tokens for f in flows)
        assert accounting.waiting_flows == len({id(one.flow) for one in waiting})
        assert accounting.in_service_tokens == sum(flow.in_service_tokens for flow in flows)
        assert all(not flow.in_service_tokens for flow in flows if not (flow.unary and flow.waiting_tokens))


async def test_unary_flow_is_in_service_until_its_last_entry_left() -> None:
    accounting, flow = TokenAccounting(), Flow(unary=True)
    first, dropped, last = (entry(length, flow=flow) for length in (10, 20, 30))
    for one in (first, dropped, last):
        accounting.enqueue(one)
    accounting.take(first)
    accounting.remove(dropped)
    assert (accounting.in_service_tokens, accounting.waiting_tokens) == (10, 30)
    accounting.take(last)
    assert accounting.snapshot()[:4] == (0, 0, 0, 0)


async def test_stream_is_never_in_service() -> None:
    accounting, flow = TokenAccounting(), Flow()
    entries = [entry(10, flow=flow) for _ in range(2)]
    for one in entries:
        accounting.enqueue(one)
    accounting.take(entries[0])
    assert accounting.in_service_tokens == 0


async def test_reservations_count_as_pending_until_they_are_released() -> None:
    accounting, flow = TokenAccounting(), Flow()
    accounting.enqueue(entry(5))
    sizes = [EstimatedSize(10, 100), EstimatedSize(20, 0)]
    accounting.reserve(flow, sizes)
    assert (accounting.pending_tokens, flow.pending_tokens, flow.reserved_characters) == (35, 30, 100)
    assert accounting.snapshot()[1:8] == (5, 0, 1, 30, 100, 2, 1)
    accounting.release(flow, sizes[1:])
    assert (accounting.pending_tokens, accounting.reserved_characters) == (15, 100)
    accounting.release(flow, sizes[:1])
    assert accounting.snapshot()[1:8] == (5, 0, 1, 0, 0, 1, 0)


async def test_flow_is_pending_once_while_it_has_entries_or_reservations() -> None:
    rng, accounting = random.Random(1), TokenAccounting()
    flows = [Flow() for _ in range(4)]
    waiting: list[Entry] = []
    reserved: list[tuple[Flow, EstimatedSize]] = []
    for _ in range(500):
        match rng.randrange(4):
            case 0 if waiting:
                accounting.remove(waiting.pop(rng.randrange(len(waiting))))
            case 1 if reserved:
                flow, size = reserved.pop(rng.randrange(len(reserved)))
                accounting.release(flow, [size])
            case 2:
                waiting.append(entry(rng.randint(1, 9), flow=rng.choice(flows)))
                accounting.enqueue(waiting[-1])
            case _:
                reserved.append((rng.choice(flows), EstimatedSize(rng.randint(1, 9), rng.choice([0, 7]))))
                accounting.reserve(reserved[-1][0], [reserved[-1][1]])
        with_entries = {id(one.flow) for one in waiting}
        assert accounting.pending_flows == len(with_entries | {id(flow) for flow, _ in reserved})
        assert accounting.offloaded_flows == len({id(flow) for flow, size in reserved if size.characters})
        assert accounting.reserved_tokens == sum(size.tokens for _, size in reserved)
        assert [flow.pending_tokens for flow in flows] == [
            sum(one.length for one in waiting if one.flow is flow)
            + sum(size.tokens for owner, size in reserved if owner is flow)
            for flow in flows
        ]


async def test_snapshot_waits_for_the_lock() -> None:
    accounting, done = TokenAccounting(), threading.Event()

    def read() -> None:
        accounting.snapshot()
        done.set()

    with accounting.lock:
        thread = threading.Thread(target=read, daemon=True)
        thread.start()
        assert not done.wait(0.05)
    assert done.wait(10)
