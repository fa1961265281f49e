"""The responses of a streaming call of grpc.aio, with the status that the server sent."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import grpc
import grpc.aio

from polyhead_client.errors import LOST_STATUS

from .thread_runtime import run

# The status of a stream may arrive shortly after a write on it has failed, or, rarely, never.
_MAX_STATUS_DELAY_S = 1.0


class Responses:
    """Iterates over the responses of a call; the iteration ends, or raises an error, as the server's status demands.

    When a write fails because the server has ended the stream, grpc.aio replaces the server's status by an internal
    error (https://github.com/grpc/grpc/issues/36066). The server's status comes first or last, so this records it.
    """

    def __init__(self, call: Any) -> None:
        """Starts to record the status of ``call``."""
        self._responses = aiter(call)
        self._status: grpc.aio.AioRpcError | None = None
        self._received = asyncio.Event()
        call.add_done_callback(self._record)

    def __aiter__(self) -> Responses:
        return self

    async def __anext__(self) -> Any:
        try:
            return await anext(self._responses)
        except grpc.aio.AioRpcError as error:
            if error.details() != LOST_STATUS:
                raise
            with suppress(TimeoutError):
                async with asyncio.timeout(_MAX_STATUS_DELAY_S):
                    await self._received.wait()
            if self._status is None:
                raise
            if self._status.code() is grpc.StatusCode.OK:
                raise StopAsyncIteration from error
            raise self._status from error

    def _record(self, call: Any) -> None:
        """Records the status of the call; gRPC calls this whenever it sets one."""
        status = _current_status(call)
        if status.details() != LOST_STATUS and not self._received.is_set():
            self._status = status
            self._received.set()


def _current_status(call: Any) -> grpc.aio.AioRpcError:
    """Returns the status of a completed call, whose coroutines do not suspend."""
    metadata = run(call.initial_metadata()), run(call.trailing_metadata())
    return grpc.aio.AioRpcError(run(call.code()), *metadata, run(call.details()))
