"""Makes every call end with a status of the server's own, whatever the client sends and whatever a handler raises.

::

    bytes -> size limit, decompression -> deserializer -> the method -> response, or the status of what was raised

A unary call is received like a stream of one message: gRPC would end one without a message without any status, and wait
without limit for one that never comes. Unexpected exceptions become INTERNAL with an incident id and nothing else.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from typing import Any

import grpc
from grpc import aio

from polyhead_server.errors import (
    CompressedMessageError,
    IncompleteRequestError,
    InternalError,
    InvalidRequestError,
    MessageTooLargeError,
    OverloadedError,
    ServerError,
)
from polyhead_server.out_of_memory import exit_if_out_of_memory
from polyhead_server.rpc import service_names
from polyhead_server.rpc.compression import inflate, is_compressed
from polyhead_server.rpc.held_bytes import HeldBytes, on_message
from polyhead_server.rpc.status import status
from polyhead_server.settings import Settings

from .timed_reads import TimedReads

_Context = aio.ServicerContext[Any, Any]
_Deserializer = Callable[[bytes], Any]

# gRPC libraries look for the details of a status under this key.
DETAILS_KEY = "grpc-status-details-bin"
# Size of the metadata of the call that the current task serves.
_METADATA_BYTES: ContextVar[int] = ContextVar("polyhead_metadata_bytes", default=0)
# Messages to the services besides inference, and to probes, name a service, a file or a model; most of their callers
# need no key.
_MAX_SMALL_MESSAGE_BYTES = 4096


class ErrorInterceptor(aio.ServerInterceptor):
    """Fails a call with the status of the ``ServerError`` that its handler raises; logs any other exception."""

    def __init__(
        self,
        *large_services: str,
        max_message_bytes: int = Settings.max_message_bytes,
        request_timeout_s: float = Settings.request_timeout_s,
        held_bytes: HeldBytes | None = None,
    ) -> None:
        """Creates the interceptor of one server.

        Args:
            large_services: Full names of the services whose messages may be large and compressed, and whose streams may
                wait for messages without limit.
            max_message_bytes: Maximum size of an inflated message of these services.
            request_timeout_s: Seconds in which the message of any other call must arrive.
            held_bytes: Counts what is held for the callers; None to count nothing.
        """
        self._prefixes = tuple(f"/{name}/" for name in large_services)
        self._large = functools.partial(_deserialize_large, max_bytes=max_message_bytes)
        self._reads = TimedReads(request_timeout_s)
        self._held_bytes = held_bytes
        # A method has one handler, which all its calls share.
        self._wrap_large, self._wrap_small = functools.cache(self._wrap), functools.cache(self._wrap_with_limits)

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: grpc.HandlerCallDetails
    ) -> Any:
        """Wraps the handler of a method; None if there is no such method."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        if self._held_bytes is not None:
            # To ask the context for the metadata would decode all of it once more.
            metadata = handler_call_details.invocation_metadata or ()
            _METADATA_BYTES.set(sum([len(key) + len(value) for key, value in metadata]))
        method = str(handler_call_details.method)
        if method.startswith(self._prefixes) and method not in service_names.PUBLIC_METHODS:
            return self._wrap_large(handler)
        return self._wrap_small(handler)

    def _wrap(self, handler: Any) -> Any:
        deserialize = functools.partial(self._large, deserialize=handler.request_deserializer)
        serializer = handler.response_serializer
        if handler.stream_stream:
            behavior = self._guarded(handler.stream_stream, large=True)
            return grpc.stream_stream_rpc_method_handler(behavior, deserialize, serializer)
        if handler.stream_unary:
            behavior = self._guarded(handler.stream_unary, large=True)
        else:
            behavior = self._guarded(handler.unary_unary, large=True, reads=True)
        return grpc.stream_unary_rpc_method_handler(behavior, deserialize, serializer)

    def _wrap_with_limits(self, handler: Any) -> Any:
        """Wraps a handler of a library's service."""
        deserialize = functools.partial(_deserialize_small, deserialize=handler.request_deserializer)
        serializer = handler.response_serializer

        async def unary(message: Any, context: _Context) -> Any:
            response = (handler.unary_unary or handler.unary_stream)(message, context)
            # The methods of channelz are synchronous.
            return await response if inspect.isawaitable(response) else response

        async def stream(_: Any, context: _Context) -> None:
            async for response in handler.stream_stream(self._messages(context), context):
                await context.write(response)

        if handler.stream_stream:
            behavior = self._guarded(stream, large=False)
        else:
            behavior = self._guarded(unary, large=False, reads=True)
        if handler.stream_stream or handler.unary_stream:
            return grpc.stream_stream_rpc_method_handler(behavior, deserialize, serializer)
        return grpc.stream_unary_rpc_method_handler(behavior, deserialize, serializer)

    async def _messages(self, context: _Context) -> AsyncIterator[Any]:
        while True:
            try:
                yield await self._reads.read(context)
            except IncompleteRequestError:
                return

    def _guarded(
        self, behavior: Callable[..., Awaitable[Any]], *, large: bool, reads: bool = False
    ) -> Callable[..., Awaitable[Any]]:
        """Counts what is held for the calls of a method, and maps what it raises to a status.

        One coroutine does everything: each further one would cost every call more than what it does.

        Args:
            behavior: The method, with a stream of messages or one message as its first argument.
            large: Whether its messages may be large.
            reads: Whether to read one message and pass it instead of the stream.
        """
        held_bytes, read = self._held_bytes, self._reads.read

        async def call(request: Any, context: _Context) -> Any:
            try:
                if held_bytes is not None:
                    held_bytes.begin(context, _METADATA_BYTES.get(), large=large)
                if reads:
                    request = await read(context)
                return await behavior(request, context)
            except (asyncio.CancelledError, aio.AbortError):
                raise
            except aio.InternalError:
                # A write to a client that has gone; the cancellation that gRPC sends comes later.
                raise asyncio.CancelledError from None
            except ServerError as error:
                await abort(context, error)
            except NotImplementedError as error:
                # The generated classes implement every method of a service this way.
                if context.code() is not grpc.StatusCode.UNIMPLEMENTED:
                    await abort(context, InternalError.logged("an RPC failed", error))
                await context.abort(grpc.StatusCode.UNIMPLEMENTED, "this server does not implement the method")
            except Exception as error:  # noqa: BLE001 - the boundary of the RPC
                exit_if_out_of_memory(error)
                await abort(context, InternalError.logged("an RPC failed", error))

        return call


def _deserialize_large(data: bytes, *, max_bytes: int, deserialize: _Deserializer) -> Any:
    on_message(len(data))
    return deserialize(inflate(data, max_bytes))


def _deserialize_small(data: bytes, *, deserialize: _Deserializer) -> Any:
    """Deserializes a small message: gRPC would send the text of a deserializer's exception to the client."""
    on_message(len(data))
    if is_compressed(data):
        raise CompressedMessageError
    if len(data) > _MAX_SMALL_MESSAGE_BYTES:
        raise MessageTooLargeError(f"a message to this method may have at most {_MAX_SMALL_MESSAGE_BYTES} bytes")
    try:
        return deserialize(data)
    except Exception as error:  # noqa: BLE001 - whatever the parser raises, the client sent an invalid message
        exit_if_out_of_memory(error)
        problem = "the message is not a valid protobuf message of this RPC"
        raise InvalidRequestError("MALFORMED_MESSAGE", problem) from None


async def abort(context: _Context, error: ServerError) -> None:
    """Fails the call with the status and the details of an error."""
    wire = status(error)
    metadata: list[Any] = [*(context.trailing_metadata() or ()), (DETAILS_KEY, wire.SerializeToString())]
    if isinstance(error, OverloadedError):
        # gRPC clients with a retry policy wait this long before the next attempt. A value of 0 would make them wait
        # until their deadline.
        metadata.append(("grpc-retry-pushback-ms", str(max(1, round(error.retry_after_s * 1000)))))
    await context.abort(grpc.StatusCode[error.code], wire.message, trailing_metadata=tuple(metadata))
