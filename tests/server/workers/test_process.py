"""A worker process, played by small scripts that speak its protocol."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from polyhead_server.settings import Settings
from polyhead_server.workers.ipc import Start, Values
from polyhead_server.workers.process import WorkerFailedError, WorkerProcess

pytestmark = pytest.mark.timeout(60)

Script = Callable[[str], None]

# Serves, and answers each order with what it was told.
OBEDIENT = """
    import json, sys
    sys.stdin.readline()
    print('{"serving": {"embedding_space": "e"}}', flush=True)
    for line in sys.stdin:
        told = json.loads(line)
        if told.get("what") == "fail":
            print(json.dumps({"failed": told["do"], "message": "it must not"}), flush=True)
        elif told.get("what") == "die":
            sys.exit(3)
        elif told.get("what") == "ask":
            print(json.dumps({"ask": 7, "what": "stats", "arguments": {}}), flush=True)
            print(json.dumps({"done": told["do"], "answer": {}}), flush=True)
        elif told.get("what") != "nothing":
            print(json.dumps({"done": told["do"], "answer": told}), flush=True)
    """


async def started(ask: Callable[[WorkerProcess, Values], None] = lambda *_: None) -> WorkerProcess:
    told = Start(Settings(bundle=Path("x")), [])
    return await WorkerProcess.start(0, told, ask)


async def test_worker_serves_when_it_says_so(script: Script) -> None:
    script(OBEDIENT)
    worker = await started()
    assert worker.served_s == 0
    assert await worker.up()
    assert worker.identity == {"embedding_space": "e"}
    assert worker.served_s > 0
    worker.terminate()
    assert await worker.ended == -15


async def test_orders_are_answered_each_with_its_own(script: Script) -> None:
    script(OBEDIENT)
    worker = await started()
    await worker.up()
    answers = await asyncio.gather(*(worker.do("echo", {"number": number}, 30) for number in range(20)))
    assert [answer["arguments"]["number"] for answer in answers] == list(range(20))
    worker.kill()
    assert await worker.ended == -9


@pytest.mark.parametrize(
    ("what", "timeout_s", "reason"), [("fail", 30, "must not"), ("die", 30, "ended"), ("nothing", 0.1, "within 0.1 s")]
)
async def test_order_that_is_not_done_fails(what: str, timeout_s: float, reason: str, script: Script) -> None:
    script(OBEDIENT)
    worker = await started()
    await worker.up()
    with pytest.raises(WorkerFailedError, match=reason):
        await worker.do(what, {}, timeout_s)
    worker.kill()
    await worker.ended


async def test_order_to_one_that_has_ended_fails_at_once(script: Script) -> None:
    script("")
    worker = await started()
    assert await worker.ended == 0
    assert not await worker.up()
    with pytest.raises(WorkerFailedError, match="ended"):
        await worker.do("echo", {}, 30)


async def test_what_a_worker_asks_is_heard(script: Script) -> None:
    script(OBEDIENT)
    asked: list[Values] = []
    worker = await started(lambda _, said: asked.append(said))
    await worker.up()
    await worker.do("ask", {}, 30)
    assert asked == [{"ask": 7, "what": "stats", "arguments": {}}]
    worker.kill()
    await worker.ended


async def test_worker_that_babbles_is_killed(script: Script) -> None:
    script("print('what?', flush=True); import time; time.sleep(1000)")
    worker = await started()
    assert await worker.ended == -9
