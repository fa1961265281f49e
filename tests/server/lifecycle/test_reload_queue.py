"""Requests to reload: how many reloads they lead to."""

from __future__ import annotations

import asyncio

import pytest
from polyhead_server.lifecycle.reload_queue import ReloadQueue

pytestmark = pytest.mark.timeout(20)


class Reloads:
    """Reloads that wait for a gate and return their number."""

    def __init__(self) -> None:
        self.forced: list[bool] = []
        self.running = self.max_running = 0
        self.gate = asyncio.Event()
        self.queue = ReloadQueue(self._reload)

    async def _reload(self, force: bool) -> int:
        self.forced.append(force)
        self.running += 1
        self.max_running = max(self.max_running, self.running)
        await self.gate.wait()
        self.running -= 1
        return len(self.forced)


async def turn() -> None:
    """Lets every task run until it waits."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_storm_of_requests_leads_to_two_reloads() -> None:
    reloads = Reloads()
    first = asyncio.create_task(reloads.queue.request(force=False))
    await turn()
    others = [asyncio.create_task(reloads.queue.request(force=False)) for _ in range(1000)]
    await turn()
    reloads.gate.set()
    assert await first == 1
    assert await asyncio.gather(*others) == [2] * 1000
    assert (len(reloads.forced), reloads.max_running) == (2, 1)


async def test_forced_and_other_requests_do_not_share_a_reload() -> None:
    reloads = Reloads()
    tasks = [asyncio.create_task(reloads.queue.request(force=force)) for force in (False, True, False, True)]
    await turn()
    reloads.gate.set()
    await asyncio.gather(*tasks)
    assert sorted(reloads.forced) == [False, True]
    assert reloads.max_running == 1


async def test_callers_that_share_a_reload_share_its_error() -> None:
    async def fail(_: bool) -> None:
        raise ValueError("it is damaged")

    queue = ReloadQueue(fail)
    results = await asyncio.gather(*(queue.request(force=False) for _ in range(3)), return_exceptions=True)
    assert [str(result) for result in results] == ["it is damaged"] * 3


async def test_reload_continues_without_its_callers() -> None:
    reloads = Reloads()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(reloads.queue.request(force=False), 0.01)
    following = asyncio.create_task(reloads.queue.request(force=False))
    await turn()
    assert len(reloads.forced) == 1
    reloads.gate.set()
    assert await following == 2
