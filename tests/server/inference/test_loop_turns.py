from __future__ import annotations

import asyncio

from polyhead_server.inference.loop_turns import LoopTurns


async def test_tasks_take_turns_in_order() -> None:
    turns, steps = LoopTurns(), []

    async def work(name: str) -> None:
        for _ in range(3):
            await turns.next()
            steps.append(name)

    await asyncio.gather(*map(work, "abc"))
    assert "".join(steps) == "abcabcabc"


async def test_other_work_goes_on_however_many_tasks_wait_for_a_turn() -> None:
    turns, steps = LoopTurns(), 0

    async def work() -> None:
        nonlocal steps
        for _ in range(10):
            await turns.next()
            steps += 1

    tasks = [asyncio.create_task(work()) for _ in range(100)]
    await asyncio.sleep(0)
    for number in range(1, 500):
        await asyncio.sleep(0)
        assert steps <= number + 1
    await asyncio.gather(*tasks)
    assert steps == 1000


async def test_cancelled_task_gives_up_its_turn() -> None:
    turns = LoopTurns()
    cancelled, other = asyncio.create_task(turns.next()), asyncio.create_task(turns.next())
    await asyncio.sleep(0)
    cancelled.cancel()
    await asyncio.wait_for(other, 10)
    # And the turns go on after a pause.
    await asyncio.wait_for(turns.next(), 10)
