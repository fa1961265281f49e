"""The buffer of a stream's pending answers: order, limit and end."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from polyhead_server.errors import DrainingError, ExpiredError
from polyhead_server.inference.types import ItemOutcome
from polyhead_server.rpc.response_buffer import PendingAnswer, ResponseBuffer


def pending(name: str) -> PendingAnswer:
    future: asyncio.Future[ItemOutcome] = asyncio.get_running_loop().create_future()
    return PendingAnswer(name, cast(Any, None), future)


def finish(*items: PendingAnswer) -> None:
    for item in items:
        item.future.set_result(ExpiredError())


async def names(buffer: ResponseBuffer) -> list[str]:
    return [one.item_id for one in await asyncio.wait_for(buffer.ready(), 10)]


async def test_answers_are_delivered_in_request_order() -> None:
    buffer = ResponseBuffer(limit=10)
    a, b, c = map(pending, "abc")
    for item in (a, b, c):
        buffer.add(item)
    finish(c, a)
    assert await names(buffer) == ["a"]
    finish(b)
    assert await names(buffer) == ["b", "c"]


async def test_answers_are_delivered_in_order_of_completion_on_request() -> None:
    buffer = ResponseBuffer(limit=10)
    buffer.in_order = False
    a, b = map(pending, "ab")
    buffer.add(a)
    buffer.add(b)
    finish(b)
    assert await names(buffer) == ["b"]
    finish(a)
    assert await names(buffer) == ["a"]


@pytest.mark.parametrize("in_order", [True, False])
async def test_space_is_available_once_answers_are_taken(in_order: bool) -> None:
    buffer = ResponseBuffer(limit=1)
    buffer.in_order = in_order
    a = pending("a")
    buffer.add(a)
    space = asyncio.ensure_future(buffer.wait_for_space())
    finish(a)
    await asyncio.sleep(0.0)
    assert not space.done()
    assert await names(buffer) == ["a"]
    await asyncio.wait_for(space, 10)


@pytest.mark.parametrize("in_order", [True, False])
async def test_closed_buffer_is_exhausted_after_its_last_answer(in_order: bool) -> None:
    buffer = ResponseBuffer(limit=10)
    buffer.in_order = in_order
    a = pending("a")
    buffer.add(a)
    buffer.close()
    finish(a)
    assert await names(buffer) == ["a"]
    assert await names(buffer) == []


async def test_error_is_raised_after_the_last_answer() -> None:
    buffer = ResponseBuffer(limit=10)
    a = pending("a")
    buffer.add(a)
    buffer.close(DrainingError())
    finish(a)
    assert await names(buffer) == ["a"]
    with pytest.raises(DrainingError):
        await buffer.ready()


async def test_cancel_reaches_every_item_in_progress() -> None:
    buffer = ResponseBuffer(limit=10)
    a, b = map(pending, "ab")
    buffer.add(a)
    buffer.add(b)
    finish(a)
    await asyncio.sleep(0)
    buffer.cancel()
    assert not a.future.cancelled()
    assert b.future.cancelled()
