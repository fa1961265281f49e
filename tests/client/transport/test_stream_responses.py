"""The status of a stream whose server ends it while the client writes; grpc.aio replaces it by an internal error."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import grpc.aio
import pytest
from polyhead_client.errors import LOST_STATUS
from polyhead_client.transport import stream_responses
from polyhead_client.transport.stream_responses import Responses

LOST = (grpc.StatusCode.INTERNAL, LOST_STATUS)
TOO_LARGE = (grpc.StatusCode.RESOURCE_EXHAUSTED, "too large")
OK = (grpc.StatusCode.OK, "")
Status = tuple[grpc.StatusCode, str]


class Call:
    """A call of grpc.aio: each status replaces the one before, and runs the callbacks."""

    def __init__(self, *statuses: Status, late: Status | None = None) -> None:
        """Sets ``statuses`` when its responses end, and ``late`` 10 ms later."""
        self._statuses, self._late = statuses, late
        self._status: Status | None = None
        self._callbacks: list[Callable[[Any], None]] = []

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        self._callbacks.append(callback)

    def set_status(self, status: Status) -> None:
        self._status = status
        for callback in self._callbacks:
            callback(self)

    async def code(self) -> grpc.StatusCode:
        assert self._status
        return self._status[0]

    async def details(self) -> str:
        assert self._status
        return self._status[1]

    async def initial_metadata(self) -> grpc.aio.Metadata:
        return grpc.aio.Metadata()

    async def trailing_metadata(self) -> grpc.aio.Metadata:
        return grpc.aio.Metadata(("key", await self.details()))

    async def __aiter__(self) -> AsyncIterator[str]:
        yield "response"
        for status in self._statuses:
            self.set_status(status)
        if self._late:
            asyncio.get_running_loop().call_later(0.01, self.set_status, self._late)
        if await self.code() is not grpc.StatusCode.OK:
            metadata = await self.trailing_metadata()
            raise grpc.aio.AioRpcError(await self.code(), metadata, metadata, await self.details())


async def outcome(call: Call) -> tuple[Status, str | None]:
    """Returns the status that ends the iteration, and its trailing metadata."""
    responses = Responses(call)
    assert await anext(responses) == "response"
    try:
        await anext(responses)
    except StopAsyncIteration:
        return OK, None
    except grpc.aio.AioRpcError as error:
        trailing = error.trailing_metadata() or grpc.aio.Metadata()
        return (error.code(), error.details() or ""), str(trailing["key"])
    pytest.fail("another response")


@pytest.mark.parametrize(
    "call",
    [
        Call(TOO_LARGE),  # control
        Call(TOO_LARGE, LOST),
        Call(LOST, TOO_LARGE),
        Call(LOST, late=TOO_LARGE),
        Call(TOO_LARGE, LOST, LOST),
    ],
)
async def test_status_of_the_server_is_raised_whenever_it_arrives(call: Call) -> None:
    assert await outcome(call) == (TOO_LARGE, "too large")


@pytest.mark.parametrize("call", [Call(OK), Call(OK, LOST), Call(LOST, late=OK)])
async def test_stream_that_the_server_ends_without_error_ends(call: Call) -> None:
    assert await outcome(call) == (OK, None)


async def test_status_that_never_arrives_is_not_awaited_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_responses, "_MAX_STATUS_DELAY_S", 0.01)
    assert await outcome(Call(LOST)) == (LOST, LOST_STATUS)
