"""The count of calls in progress."""

from __future__ import annotations

import asyncio

from polyhead_server.rpc.active_calls import ActiveCalls


async def test_every_change_of_the_count_is_reported() -> None:
    counts: list[int] = []
    calls = ActiveCalls(counts.append)
    calls.begin()
    calls.begin()
    calls.end()
    assert (counts, calls.count) == ([1, 2, 1], 1)


async def test_wait_ends_with_the_last_call() -> None:
    calls = ActiveCalls(lambda _: None)
    calls.begin()
    calls.begin()
    idle = asyncio.ensure_future(calls.wait_idle(30))
    calls.end()
    await asyncio.sleep(0)
    assert not idle.done()
    calls.end()
    assert await idle


async def test_wait_is_limited() -> None:
    calls = ActiveCalls(lambda _: None)
    calls.begin()
    assert not await calls.wait_idle(0.01)
