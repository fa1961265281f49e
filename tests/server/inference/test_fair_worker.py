from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Generator

import pytest
from polyhead_server.inference import fair_worker
from polyhead_server.inference.fair_worker import FairWorker
from polyhead_server.inference.types import Flow

from tests.support.fake_engine import Panic


class Clock:
    """Replaces the module ``time``; each step of work moves it."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(fair_worker, "time", clock)
    return clock


@pytest.fixture
async def worker() -> AsyncIterator[FairWorker]:
    worker = FairWorker("test")
    yield worker
    worker.close()


def steps(count: int, log: list[str], name: str, cost_s: float, clock: Clock) -> Generator[None, None, str]:
    for _ in range(count):
        clock.now += cost_s
        log.append(name)
        yield
    return name


async def run_together(worker: FairWorker, *jobs: tuple[Flow, Generator[None, None, str]]) -> list[str]:
    """Runs jobs that all wait before the thread begins."""
    begin = threading.Event()

    def blocker() -> Generator[None, None, None]:
        begin.wait(30)
        yield

    first = asyncio.create_task(worker.run(Flow(), blocker()))
    await asyncio.sleep(0)
    tasks = [asyncio.create_task(worker.run(flow, job)) for flow, job in jobs]
    await asyncio.sleep(0)
    begin.set()
    await first
    return await asyncio.gather(*tasks)


async def test_result_is_what_the_generator_returns(worker: FairWorker, clock: Clock) -> None:
    assert await worker.run(Flow(), steps(3, [], "done", 0.001, clock)) == "done"


async def test_expensive_work_gets_no_more_time_than_cheap_work(worker: FairWorker, clock: Clock) -> None:
    log: list[str] = []
    expensive = [(Flow(), steps(50, log, f"E{number}", 0.3, clock)) for number in range(8)]
    cheap = Flow(), steps(50, log, "c", 0.001, clock)
    await run_together(worker, *expensive, cheap)
    # After one expensive step of each, all of the cheap work takes less time than another one.
    assert log[:8] == [f"E{number}" for number in range(8)]
    assert log[8:58] == ["c"] * 50


async def test_work_that_nobody_waits_for_ends(worker: FairWorker) -> None:
    entered, leave, taken = asyncio.Event(), threading.Event(), 0
    loop = asyncio.get_running_loop()

    def endless() -> Generator[None, None, None]:
        nonlocal taken
        while True:
            taken += 1
            loop.call_soon_threadsafe(entered.set)
            leave.wait(30)
            yield

    task = asyncio.create_task(worker.run(Flow(), endless()))
    await entered.wait()
    task.cancel()
    await asyncio.wait({task})
    leave.set()

    def last() -> Generator[None, None, int]:
        yield
        return taken

    assert await worker.run(Flow(), last()) == 1


@pytest.mark.parametrize("error", [ValueError("no"), Panic("panic")])
async def test_error_is_raised_and_the_thread_works_on(worker: FairWorker, error: BaseException, clock: Clock) -> None:
    def failing() -> Generator[None, None, None]:
        yield
        raise error

    with pytest.raises(type(error)):
        await worker.run(Flow(), failing())
    assert await worker.run(Flow(), steps(1, [], "done", 0.001, clock)) == "done"


async def test_closed_worker_finishes_what_it_has_and_takes_no_more(worker: FairWorker, clock: Clock) -> None:
    task = asyncio.create_task(worker.run(Flow(), steps(100, [], "done", 0.02, clock)))
    await asyncio.sleep(0)
    worker.close()
    assert await task == "done"
    with pytest.raises(RuntimeError, match="closed"):
        await worker.run(Flow(), steps(1, [], "late", 0.02, clock))
