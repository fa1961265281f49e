"""Maps exceptions of RPCs to statuses. Unexpected ones become INTERNAL with an incident id and nothing else."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from grpc import aio

from polyhead_server.errors import InternalError, InvalidRequestError, OverloadedError, ServerError
from polyhead_server.out_of_memory import exit_if_out_of_memory
from polyhead_server.rpc.status import status

_Context = aio.ServicerContext[Any, Any]


class ErrorInterceptor(aio.ServerInterceptor):
    """Fails a call with the status of the ``ServerError`` that its handler raises; logs any other exception."""

    def __init__(self, *service_names: str) -> None:
        """Creates the interceptor of one server.

        Args:
            service_names: Full names of the services whose deserializers never raise; their handlers get decoded
                messages. Other services' handlers also get their deserializers wrapped.
        """
        self._prefixes = tuple(f"/{name}/" for name in service_names)
        # A method has one handler, which all its calls share.
        self._wrap = functools.cache(_wrap)

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: grpc.HandlerCallDetails
    ) -> Any:
        """Wraps the handler of a method; None if there is no such method."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        if not str(handler_call_details.method).startswith(self._prefixes):
            return _wrap_with_deserializer(handler)
        return self._wrap(handler)


def _wrap(handler: Any) -> Any:
    if handler.stream_stream:
        return grpc.stream_stream_rpc_method_handler(
            _mapping_errors(handler.stream_stream), handler.request_deserializer, handler.response_serializer
        )
    if handler.stream_unary:
        return grpc.stream_unary_rpc_method_handler(
            _mapping_errors(handler.stream_unary), handler.request_deserializer, handler.response_serializer
        )
    return grpc.unary_unary_rpc_method_handler(
        _mapping_errors(handler.unary_unary), handler.request_deserializer, handler.response_serializer
    )


def _mapping_errors(behavior: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    async def call(request: Any, context: _Context) -> Any:
        try:
            return await behavior(request, context)
        except (asyncio.CancelledError, aio.AbortError):
            raise
        except ServerError as error:
            await abort(context, error)
        except Exception as error:  # noqa: BLE001 - the boundary of the RPC
            exit_if_out_of_memory(error)
            await abort(context, InternalError.logged("an RPC failed", error))

    return call


def _wrap_with_deserializer(handler: Any) -> Any:
    """Wraps a handler to receive bytes: gRPC would send the text of a deserializer's exception to the client."""

    def deserialize(data: bytes) -> Any:
        try:
            return handler.request_deserializer(data)
        except Exception as error:  # noqa: BLE001 - whatever the parser raises, the client sent an invalid message
            exit_if_out_of_memory(error)
            problem = "the message is not a valid protobuf message of this RPC"
            raise InvalidRequestError("MALFORMED_MESSAGE", problem) from None

    async def unary(data: bytes, context: _Context) -> Any:
        response = (handler.unary_unary or handler.unary_stream)(deserialize(data), context)
        # The methods of channelz are synchronous.
        return await response if inspect.isawaitable(response) else response

    async def stream(messages: AsyncIterator[bytes], context: _Context) -> None:
        async for response in handler.stream_stream((deserialize(data) async for data in messages), context):
            await context.write(response)

    serializer = handler.response_serializer
    if handler.stream_stream:
        return grpc.stream_stream_rpc_method_handler(_mapping_errors(stream), None, serializer)
    if handler.unary_stream:
        return grpc.unary_stream_rpc_method_handler(_mapping_errors(unary), None, serializer)
    return grpc.unary_unary_rpc_method_handler(_mapping_errors(unary), None, serializer)


async def abort(context: _Context, error: ServerError) -> None:
    """Fails the call with the status and the details of an error."""
    wire = status(error)
    # gRPC libraries look for the details of a status under this key.
    metadata: list[Any] = [*(context.trailing_metadata() or ()), ("grpc-status-details-bin", wire.SerializeToString())]
    if isinstance(error, OverloadedError):
        # gRPC clients with a retry policy wait this long before the next attempt. A value of 0 would make them wait
        # until their deadline.
        metadata.append(("grpc-retry-pushback-ms", str(max(1, round(error.retry_after_s * 1000)))))
    await context.abort(grpc.StatusCode[error.code], wire.message, trailing_metadata=tuple(metadata))
