"""Runs calls on gRPC's handlers and interceptors without a gRPC server, which in Ray Serve stands in another process.

::

    bytes -> TelemetryInterceptor -> AuthInterceptor -> ErrorInterceptor -> the handler of rpc/method_table -> bytes

A status other than OK is left in Ray's context of the call, which goes back with an empty response. Ray would replace
the status of an exception by one without the reason.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import grpc
from grpc import aio

from polyhead_server.errors import MessageTooLargeError

# Metadata key of the seconds that are left to a call when the proxy forwards it.
TIME_REMAINING = "polyhead-time-remaining-s"


class RayContext(Protocol):
    """What is used of ``ray.serve.grpc_util.RayServegRPCContext``."""

    def invocation_metadata(self) -> Sequence[tuple[str, str]]:
        """Returns the client's metadata."""

    def peer(self) -> str:
        """Returns the client's address."""

    def set_code(self, code: grpc.StatusCode) -> None:
        """Sets the status code."""

    def set_details(self, details: str) -> None:
        """Sets the message of the status."""

    def set_trailing_metadata(self, trailing_metadata: list[Any]) -> None:
        """Sets the trailing metadata."""


class EncodedResponse:
    """A response of which Ray Serve wants the bytes."""

    __slots__ = ("_data",)

    def __init__(self, data: bytes) -> None:
        self._data = data

    def SerializeToString(self) -> bytes:  # noqa: N802 - the name that Ray Serve calls
        """Returns the bytes."""
        return self._data


# Ends a call whose status is not OK.
NO_RESPONSE = EncodedResponse(b"")


@dataclass(frozen=True)
class _CallDetails:
    """What interceptors read of ``grpc.HandlerCallDetails``."""

    method: str
    invocation_metadata: Sequence[tuple[str, str]]


class _Context:
    """The part of gRPC's context that handlers and interceptors use, for a call in Ray Serve."""

    def __init__(
        self, ray: RayContext, messages: AsyncIterator[bytes], send: Callable[[bytes], Awaitable[None]]
    ) -> None:
        metadata = list(ray.invocation_metadata())
        remaining = [value for key, value in metadata if key == TIME_REMAINING]
        self.metadata = [(key, value) for key, value in metadata if key != TIME_REMAINING]
        self.deserialize: Callable[[bytes], Any] = bytes
        self.serialize: Callable[[Any], bytes] = bytes
        self._ray = ray
        self._messages = messages
        self._send = send
        # The proxy's value is the last one.
        self._deadline = time.monotonic() + float(remaining[-1]) if remaining else None
        self._code: grpc.StatusCode | None = None
        self._trailing: tuple[Any, ...] = ()
        self._callbacks: list[Callable[[Any], None]] = []

    def time_remaining(self) -> float | None:
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def invocation_metadata(self) -> Sequence[tuple[str, str]]:
        return self.metadata

    def peer(self) -> str:
        return self._ray.peer()

    def code(self) -> grpc.StatusCode | None:
        return self._code

    def trailing_metadata(self) -> tuple[Any, ...]:
        return self._trailing

    def set_trailing_metadata(self, metadata: Sequence[Any]) -> None:
        self._trailing = tuple(metadata)
        self._ray.set_trailing_metadata(list(metadata))

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        self._callbacks.append(callback)

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Sequence[Any] = ()) -> None:
        self._code = code
        self._ray.set_code(code)
        self._ray.set_details(details)
        self.set_trailing_metadata(trailing_metadata)
        raise aio.AbortError

    async def read(self) -> Any:
        data = await anext(self._messages, None)
        return aio.EOF if data is None else self.deserialize(data)

    async def messages(self) -> AsyncIterator[Any]:
        async for data in self._messages:
            yield self.deserialize(data)

    async def write(self, message: Any) -> None:
        await self._send(self.serialize(message))

    def end(self) -> None:
        for callback in self._callbacks:
            callback(self)


class HandlerCalls:
    """The methods of some handlers behind interceptors. Event loop only."""

    def __init__(
        self,
        handlers: Sequence[grpc.GenericRpcHandler],
        interceptors: Sequence[aio.ServerInterceptor],
        max_message_bytes: int,
    ) -> None:
        """Prepares the calls.

        Args:
            handlers: Those that a server would register.
            interceptors: Those of the server, the outermost first.
            max_message_bytes: Maximum size of a request message.
        """
        self._handlers = handlers
        self._max_message_bytes = max_message_bytes
        self._find: Callable[[Any], Awaitable[Any]] = self._registered
        for interceptor in reversed(interceptors):
            self._find = functools.partial(interceptor.intercept_service, self._find)

    async def unary(self, method: str, data: bytes, ray: RayContext) -> EncodedResponse:
        """Answers a unary call.

        Args:
            method: Path of the method.
            data: The request.
            ray: Receives the status.
        """
        responses: list[bytes] = []

        async def send(response: bytes) -> None:
            responses.append(response)

        await self._run(method, _Context(ray, _single(data), send))
        return EncodedResponse(responses[0]) if responses else NO_RESPONSE

    async def stream(
        self, method: str, messages: AsyncIterator[bytes], ray: RayContext
    ) -> AsyncIterator[EncodedResponse]:
        """Answers a bidirectional stream; the arguments are those of ``unary``."""
        # The handler writes the next response when the one before has been taken.
        responses: asyncio.Queue[bytes | None] = asyncio.Queue(maxsize=1)

        async def run() -> None:
            try:
                await self._run(method, context)
            finally:
                ended.set()
                if responses.empty():
                    responses.put_nowait(None)

        context = _Context(ray, messages, responses.put)
        ended = asyncio.Event()
        task = asyncio.create_task(run())
        try:
            while not (ended.is_set() and responses.empty()):
                response = await responses.get()
                if response is not None:
                    yield EncodedResponse(response)
            await task
            if context.code() is not None:
                yield NO_RESPONSE
        finally:
            task.cancel()

    async def _run(self, method: str, context: _Context) -> None:
        """Runs a call to its end; a status other than OK is in the context then."""
        try:
            handler = await self._find(_CallDetails(method, context.metadata))
            if handler is None:
                await context.abort(grpc.StatusCode.UNIMPLEMENTED, "this server does not implement the method")
            context.deserialize = functools.partial(self._deserialize, handler.request_deserializer or bytes)
            context.serialize = handler.response_serializer or bytes
            if handler.stream_stream:
                # A rejected call of either kind as well, which reads nothing.
                await handler.stream_stream(context.messages(), context)
            else:
                response = await handler.stream_unary(context.messages(), context)
                await context.write(response)
        except aio.AbortError:
            pass
        finally:
            context.end()

    def _deserialize(self, deserialize: Callable[[bytes], Any], data: bytes) -> Any:
        if len(data) > self._max_message_bytes:
            raise MessageTooLargeError(
                f"the message has {len(data)} bytes; at most {self._max_message_bytes} are allowed"
            )
        return deserialize(data)

    async def _registered(self, details: Any) -> Any:
        return next((one for handler in self._handlers if (one := handler.service(details))), None)


async def _single(data: bytes) -> AsyncIterator[bytes]:
    yield data
