"""Whatever an RPC raises becomes a status, and nothing of our internals becomes text."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from grpc import aio

from polyhead_server.errors import InternalError, InvalidRequestError, OverloadedError, ServerError
from polyhead_server.rpc.status import status

_Context = aio.ServicerContext[Any, Any]
_CODES = {code.value[0]: code for code in grpc.StatusCode}


class ErrorInterceptor(aio.ServerInterceptor):
    """Maps errors through the one table of ``statuses``; anything unexpected is logged under an id."""

    def __init__(self, service_name: str) -> None:
        """Takes the service whose deserializers never raise; its messages need no further step on their way."""
        self._prefix = f"/{service_name}/"
        # The calls of a method have one handler.
        self._guarding = functools.cache(_guarding)

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: grpc.HandlerCallDetails
    ) -> Any:
        """Wraps the handlers of our service, and those of others, whose deserializers raise, around these as well."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        if not str(handler_call_details.method).startswith(self._prefix):
            return _parsing_inside(handler)
        return self._guarding(handler)


def _guarding(handler: Any) -> Any:
    if handler.stream_stream:
        return grpc.stream_stream_rpc_method_handler(
            _guarded(handler.stream_stream), handler.request_deserializer, handler.response_serializer
        )
    return grpc.unary_unary_rpc_method_handler(
        _guarded(handler.unary_unary), handler.request_deserializer, handler.response_serializer
    )


def _guarded(behavior: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    async def guarded(request: Any, context: _Context) -> Any:
        try:
            return await behavior(request, context)
        except (asyncio.CancelledError, aio.AbortError):
            raise
        except ServerError as error:
            await abort(context, error)
        except Exception as error:  # noqa: BLE001 - the boundary of the RPC
            await abort(context, InternalError.logged("an RPC failed", error))

    return guarded


def _parsing_inside(handler: Any) -> Any:
    """A guarded handler that is given bytes: gRPC would send the text of what a deserializer raises to the client."""

    def parsed(data: bytes) -> Any:
        try:
            return handler.request_deserializer(data)
        except Exception:  # noqa: BLE001 - the client's mistake, whatever the parser says of it
            problem = "the message is no protobuf message of this RPC"
            raise InvalidRequestError("MALFORMED_MESSAGE", problem) from None

    async def unary(data: bytes, context: _Context) -> Any:
        answer = (handler.unary_unary or handler.unary_stream)(parsed(data), context)
        # channelz answers at once.
        return await answer if inspect.isawaitable(answer) else answer

    async def stream(messages: AsyncIterator[bytes], context: _Context) -> None:
        async for answer in handler.stream_stream((parsed(data) async for data in messages), context):
            await context.write(answer)

    serializer = handler.response_serializer
    if handler.stream_stream:
        return grpc.stream_stream_rpc_method_handler(_guarded(stream), None, serializer)
    if handler.unary_stream:
        return grpc.unary_stream_rpc_method_handler(_guarded(unary), None, serializer)
    return grpc.unary_unary_rpc_method_handler(_guarded(unary), None, serializer)


async def abort(context: _Context, error: ServerError) -> None:
    """Ends the call with the status and the details of an error of ours."""
    wire = status(error)
    # The name under which every gRPC library looks for the details of a status.
    metadata: list[Any] = [*(context.trailing_metadata() or ()), ("grpc-status-details-bin", wire.SerializeToString())]
    if isinstance(error, OverloadedError):
        # gRPC's own clients wait so long before they try again. Not 0, which makes them wait until their deadline.
        metadata.append(("grpc-retry-pushback-ms", str(max(1, round(error.retry_after_s * 1000)))))
    await context.abort(_CODES[wire.code], wire.message, trailing_metadata=tuple(metadata))
