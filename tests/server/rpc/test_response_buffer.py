from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from polyhead_server.errors import DrainingError, ExpiredError
from polyhead_server.inference.types import ItemOutcome, RequestOptions
from polyhead_server.rpc.response_buffer import Pending, Window


def pending(name: str) -> Pending:
    future: asyncio.Future[ItemOutcome] = asyncio.get_running_loop().create_future()
    return Pending(name, RequestOptions(), cast(Any, None), future)


def finish(*items: Pending) -> None:
    for item in items:
        item.future.set_result(ExpiredError())


async def names(window: Window) -> list[str]:
    return [one.item_id for one in await asyncio.wait_for(window.ready(), 10)]


async def test_answers_leave_in_request_order() -> None:
    window = Window(limit=10)
    a, b, c = map(pending, "abc")
    for item in (a, b, c):
        window.add(item)
    finish(c, a)
    assert await names(window) == ["a"]
    finish(b)
    assert await names(window) == ["b", "c"]


async def test_answers_leave_as_they_finish_when_asked() -> None:
    window = Window(limit=10)
    window.in_order = False
    a, b = map(pending, "ab")
    window.add(a)
    window.add(b)
    finish(b)
    assert await names(window) == ["b"]
    finish(a)
    assert await names(window) == ["a"]


@pytest.mark.parametrize("in_order", [True, False])
async def test_room_comes_when_answers_were_taken(in_order: bool) -> None:
    window = Window(limit=1)
    window.in_order = in_order
    a = pending("a")
    window.add(a)
    room = asyncio.ensure_future(window.room())
    finish(a)
    await asyncio.sleep(0.0)
    assert not room.done()
    assert await names(window) == ["a"]
    await asyncio.wait_for(room, 10)


@pytest.mark.parametrize("in_order", [True, False])
async def test_closed_window_ends_after_its_last_answer(in_order: bool) -> None:
    window = Window(limit=10)
    window.in_order = in_order
    a = pending("a")
    window.add(a)
    window.close()
    finish(a)
    assert await names(window) == ["a"]
    assert await names(window) == []


async def test_error_is_raised_after_the_last_answer() -> None:
    window = Window(limit=10)
    a = pending("a")
    window.add(a)
    window.close(DrainingError())
    finish(a)
    assert await names(window) == ["a"]
    with pytest.raises(DrainingError):
        await window.ready()


async def test_cancel_reaches_every_open_item() -> None:
    window = Window(limit=10)
    a, b = map(pending, "ab")
    window.add(a)
    window.add(b)
    finish(a)
    await asyncio.sleep(0)
    window.cancel()
    assert not a.future.cancelled()
    assert b.future.cancelled()
