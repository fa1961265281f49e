"""Reads within a limited time: one timer for all of them, and cancellations that are none of its own."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from grpc import aio
from polyhead_server.errors import IncompleteRequestError, RequestTimeoutError
from polyhead_server.rpc.interceptors.timed_reads import TimedReads


class Context:
    """A call whose message the test delivers."""

    def __init__(self) -> None:
        self.message: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    async def read(self) -> Any:
        return await self.message


def begin(reads: TimedReads) -> tuple[Any, asyncio.Task[Any]]:
    """Begins a read in a task of its own, as gRPC begins calls."""
    context: Any = Context()
    return context, asyncio.create_task(reads.read(context))


async def test_message_is_returned() -> None:
    context, task = begin(TimedReads(60))
    await asyncio.sleep(0)
    context.message.set_result("message")
    assert await task == "message"


async def test_end_of_the_client_s_side_is_an_incomplete_request() -> None:
    context, task = begin(TimedReads(60))
    context.message.set_result(aio.EOF)
    with pytest.raises(IncompleteRequestError):
        await task


async def test_each_read_that_waits_too_long_expires() -> None:
    reads = TimedReads(0.01)
    tasks = [begin(reads)[1] for _ in range(3)]
    for task in tasks:
        with pytest.raises(RequestTimeoutError):
            await task
        assert not task.cancelling()
    # The timer starts anew for reads that begin when none waits.
    with pytest.raises(RequestTimeoutError):
        await begin(reads)[1]


async def test_read_that_ended_is_not_cancelled_later() -> None:
    reads = TimedReads(0.01)
    context: Any = Context()
    context.message.set_result("message")

    async def call() -> str:
        assert await reads.read(context) == "message"
        # Longer than the time of the read.
        with pytest.raises(RequestTimeoutError):
            await begin(reads)[1]
        return "ended"

    assert await asyncio.create_task(call()) == "ended"


async def test_cancelled_call_stays_cancelled() -> None:
    _, task = begin(TimedReads(60))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_call_that_is_cancelled_while_its_read_expires_stays_cancelled() -> None:
    reads = TimedReads(0)
    _, task = begin(reads)
    # The read begins, its time is over, and the timer is due in the next iteration.
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
