"""The worker's end of the line to its supervisor."""

from __future__ import annotations

import asyncio
import io
import json
from typing import Any, cast

import pytest
from polyhead_server.errors import NotReadyError, ReloadError
from polyhead_server.lifecycle.compatibility import Identity
from polyhead_server.lifecycle.operations import Control
from polyhead_server.workers.ipc import Values, line
from polyhead_server.workers.main import Supervisor

IDENTITY = Identity("space", (("topic", "softmax", ("a", "b")),))


class PlayedControl:
    async def do(self, what: str, arguments: Values) -> Values:
        if what == "fail":
            raise NotReadyError
        return {"did": what, **arguments}


class Line:
    """Both directions of the line, and what the worker said so far."""

    def __init__(self) -> None:
        self._said = io.BytesIO()
        self.supervisor = Supervisor(self._said, False, None)
        self._reader = asyncio.StreamReader()
        self._listening = asyncio.create_task(self.supervisor.listen(self._reader))
        self.supervisor.announce(IDENTITY, cast(Control, PlayedControl()))

    def tell(self, **values: Any) -> None:
        self._reader.feed_data(line(values))

    async def end(self) -> list[Values]:
        """Ends the supervisor; returns all that the worker said."""
        self._reader.feed_eof()
        await self._listening
        await asyncio.gather(*self.supervisor._working)
        return [json.loads(data) for data in self._said.getvalue().splitlines()]


async def test_worker_does_what_it_is_told() -> None:
    told = Line()
    told.tell(do=3, what="reload", arguments={"force": True})
    told.tell(do=4, what="fail", arguments={})
    announced, *answers = await told.end()
    assert Identity.from_json(announced["serving"]) == IDENTITY
    assert sorted(answers, key=str) == [
        {"done": 3, "answer": {"did": "reload", "force": True}},
        {"failed": 4, "message": "the model is being loaded"},
    ]


async def test_each_question_has_its_answer() -> None:
    told = Line()
    asked = [asyncio.create_task(told.supervisor.ask("stats", {"number": number})) for number in range(3)]
    await asyncio.sleep(0)
    told.tell(answers=2, workers=[{"number": 2}])
    told.tell(answers=0, workers=[{"number": 0}])
    told.tell(answers=1, message="worker 1: no")
    assert await asked[0] == [{"number": 0}]
    assert await asked[2] == [{"number": 2}]
    with pytest.raises(ReloadError, match="worker 1: no"):
        await asked[1]
    said = await told.end()
    assert [one["arguments"]["number"] for one in said if "ask" in one] == [0, 1, 2]


async def test_answer_that_nobody_waits_for_any_more_is_passed_over() -> None:
    told = Line()
    asked = asyncio.create_task(told.supervisor.ask("stats", {}))
    await asyncio.sleep(0)
    asked.cancel()
    told.tell(answers=0, workers=[])
    told.tell(do=1, what="drain", arguments={})
    assert {"done": 1, "answer": {"did": "drain"}} in await told.end()
