from __future__ import annotations

import asyncio

import pytest
from polyhead_server.lifecycle.uninterrupted import Uninterrupted

from tests.support.polling import until

pytestmark = pytest.mark.timeout(30)


async def test_work_continues_when_its_caller_goes() -> None:
    tasks, begin, done = Uninterrupted(), asyncio.Event(), asyncio.Event()

    async def work() -> None:
        await begin.wait()
        done.set()

    caller = asyncio.create_task(tasks.run(work()))
    await asyncio.sleep(0)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    begin.set()
    await asyncio.wait_for(done.wait(), 30)


async def test_caller_gets_the_result_or_the_error() -> None:
    async def fail() -> None:
        raise ValueError("a defect")

    tasks = Uninterrupted()
    assert await tasks.run(asyncio.sleep(0, "done")) == "done"
    with pytest.raises(ValueError, match="a defect"):
        await tasks.run(fail())


async def test_all_work_is_cancelled() -> None:
    tasks = Uninterrupted()
    task = tasks.start(asyncio.sleep(60))
    tasks.cancel()
    await until(task.cancelled)
