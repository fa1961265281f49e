"""The outermost layer: whatever an RPC raises becomes a status, and nothing of our internals becomes text."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from grpc import aio

from .errors import InternalError, OverloadedError, ServerError
from .statuses import status

_CODES = {code.value[0]: code for code in grpc.StatusCode}


class ErrorInterceptor(aio.ServerInterceptor):
    """Maps errors of our own RPCs through the one table of ``statuses``; anything unexpected is logged under an id."""

    def __init__(self, service_name: str) -> None:
        self._prefix = f"/{service_name}/"

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: grpc.HandlerCallDetails
    ) -> Any:
        """Wraps the handlers of our service and leaves all others alone."""
        handler = await continuation(handler_call_details)
        if handler is None or not str(handler_call_details.method).startswith(self._prefix):
            return handler
        if handler.stream_stream:
            return grpc.stream_stream_rpc_method_handler(
                _guarded(handler.stream_stream), handler.request_deserializer, handler.response_serializer
            )
        return grpc.unary_unary_rpc_method_handler(
            _guarded(handler.unary_unary), handler.request_deserializer, handler.response_serializer
        )


def _guarded(behavior: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    async def guarded(request: Any, context: aio.ServicerContext[Any, Any]) -> Any:
        try:
            return await behavior(request, context)
        except (asyncio.CancelledError, aio.AbortError):
            raise
        except ServerError as error:
            await _abort(context, error)
        except Exception as error:  # noqa: BLE001 - the boundary of the RPC
            await _abort(context, InternalError.logged("an RPC failed", error))

    return guarded


async def _abort(context: aio.ServicerContext[Any, Any], error: ServerError) -> None:
    wire = status(error)
    # The name under which every gRPC library looks for the details of a status.
    metadata: list[tuple[str, str | bytes]] = [("grpc-status-details-bin", wire.SerializeToString())]
    if isinstance(error, OverloadedError):
        # gRPC's own clients wait so long before they try again. Not 0, which makes them wait until their deadline.
        metadata.append(("grpc-retry-pushback-ms", str(max(1, round(error.retry_after_s * 1000)))))
    await context.abort(_CODES[wire.code], wire.message, trailing_metadata=tuple(metadata))
