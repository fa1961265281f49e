from __future__ import annotations

import asyncio
import threading
import time

import pytest
from polyhead_client.transport.asyncio_runtime import AsyncioRuntime
from polyhead_client.transport.thread_runtime import ThreadRuntime, run


def test_run_returns_the_result_of_a_coroutine_that_does_not_suspend() -> None:
    async def work() -> int:
        async with ThreadRuntime().condition() as _:
            return 7

    assert run(work()) == 7


def test_run_raises_the_exception_of_the_coroutine() -> None:
    async def work() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(work())


def test_run_rejects_a_coroutine_that_suspends() -> None:
    with pytest.raises(RuntimeError, match="suspended"):
        run(asyncio.sleep(0))


def test_blocking_condition_waits_until_notified() -> None:
    condition, ready = ThreadRuntime().condition(), threading.Event()

    async def wait() -> None:
        async with condition:
            await condition.wait_until(ready.is_set)

    async def notify() -> None:
        async with condition:
            ready.set()
            condition.notify_all()

    waiting = threading.Thread(target=lambda: run(wait()))
    waiting.start()
    run(notify())
    waiting.join(20)
    assert not waiting.is_alive()


async def test_both_runtimes_stop_waiting_at_the_time_limit() -> None:
    for runtime in (ThreadRuntime(), AsyncioRuntime()):
        start, condition = time.monotonic(), runtime.condition()
        async with condition:
            await condition.wait_once(0.05)
            await condition.wait_until(lambda: False, 0.05)
        assert await runtime.queue().get(0.05) is None
        assert 0.1 < time.monotonic() - start < 10
