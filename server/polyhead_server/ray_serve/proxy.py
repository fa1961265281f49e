"""``polyhead.v1`` in Ray's gRPC proxy: calls pass as bytes, with their deadline; Ray's own errors become polyhead's.

Ray Serve calls ``add_inference_service`` in each proxy process::

    serve start --grpc-port 9000 --grpc-servicer-functions polyhead_server.ray_serve.proxy:add_inference_service

Ray replaces the functions of the registered handlers by functions that send a call to a replica. ``_RoutedService``
puts around those what Ray's proxy does not do:

- It passes the deadline on, which Ray's context does not contain.
- It gives Ray's own failures, such as a replica that died, the status and the reason by which clients retry.
- It reads no further requests of a stream while the client does not read responses.
- It drops the empty response with which a replica ends a stream whose status is not OK.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from grpc import aio
from grpc_health.v1 import health_pb2
from polyhead.v1 import inference_service_pb2

from polyhead_server.errors import NotReadyError, OverloadedError, ReplicaLostError, ServerError
from polyhead_server.rpc import service_names
from polyhead_server.rpc.interceptors.errors import DETAILS_KEY, abort

from .handler_calls import TIME_REMAINING

_Context = aio.ServicerContext[Any, Any]
_SERVICE = inference_service_pb2.DESCRIPTOR.services_by_name["InferenceService"]
_WATCH = f"/{service_names.HEALTH}/Watch"
_RETRY_AFTER_S = 1.0
# What Ray Serve's own statuses mean, by their numbers. The others stay, such as that of its request_timeout_s.
_RAY_ERRORS: dict[int, Callable[[], ServerError]] = {
    # A replica maps every error of its own, so an unexpected one comes from a replica that ended.
    grpc.StatusCode.INTERNAL.value[0]: ReplicaLostError,
    grpc.StatusCode.UNAVAILABLE.value[0]: NotReadyError,
    grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]: lambda: OverloadedError(
        "every replica has as many calls as it accepts", _RETRY_AFTER_S
    ),
}


def add_inference_service(_: Any, server: Any) -> None:
    """Registers ``polyhead.v1.InferenceService`` and the check of ``grpc.health.v1`` with a gRPC server of Ray Serve.

    Args:
        server: The server, which replaces the functions of the handlers.
    """
    handlers: dict[str, Any] = {
        f"/{service_names.HEALTH}/Check": grpc.unary_unary_rpc_method_handler(_replaced),
        _WATCH: grpc.unary_stream_rpc_method_handler(_replaced),
    }
    for method in _SERVICE.methods:
        # Without a deserializer, requests stay bytes: only the replica decodes them, and they are cheap to send on.
        make = grpc.stream_stream_rpc_method_handler if method.client_streaming else grpc.unary_unary_rpc_method_handler
        handlers[f"/{_SERVICE.full_name}/{method.name}"] = make(_replaced)
    server.add_generic_rpc_handlers((_RoutedService(handlers),))


async def _replaced(request: Any, context: _Context) -> Any:
    """Stands for a function that Ray Serve replaces."""
    raise NotImplementedError


class _RoutedService(grpc.GenericRpcHandler):
    """The methods, whose functions Ray Serve replaces under the name ``_method_handlers``, as in gRPC's own class."""

    def __init__(self, handlers: dict[str, Any]) -> None:
        self._method_handlers = handlers
        self._find = functools.cache(self._wrapped)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        method = str(handler_call_details.method)
        # Not by the cache: a caller may name any number of methods.
        return self._find(method) if method in self._method_handlers else None

    def _wrapped(self, method: str) -> grpc.RpcMethodHandler[Any, Any]:
        if method == _WATCH:
            return grpc.unary_stream_rpc_method_handler(_watch)
        routed = self._method_handlers[method]
        if routed.request_streaming:
            return grpc.stream_stream_rpc_method_handler(_stream(routed.stream_stream))
        return grpc.unary_unary_rpc_method_handler(_unary(routed.unary_unary))


def _unary(route: Callable[..., Awaitable[bytes]]) -> Callable[..., Awaitable[bytes]]:
    async def unary(request: bytes, context: _Context) -> bytes:
        response = await route(request, _ContextWithDeadline(context))
        await _explain(context)
        return response

    return unary


def _stream(route: Callable[..., AsyncIterator[bytes]]) -> Callable[..., AsyncIterator[bytes]]:
    async def stream(requests: AsyncIterator[bytes], context: _Context) -> AsyncIterator[bytes]:
        client_reads = asyncio.Event()
        client_reads.set()
        try:
            async for response in route(_paused(requests, client_reads), _ContextWithDeadline(context)):
                if response:
                    client_reads.clear()
                    # gRPC returns from here when the client has room for the response.
                    yield response
                    client_reads.set()
            await _explain(context)
        finally:
            client_reads.set()

    return stream


async def _paused(requests: AsyncIterator[bytes], client_reads: asyncio.Event) -> AsyncIterator[bytes]:
    """Yields requests while the client reads: Ray Serve would keep any number of responses for one that does not."""
    async for request in requests:
        yield request
        await client_reads.wait()


async def _watch(_: bytes, __: _Context) -> AsyncIterator[bytes]:
    """Reports SERVING to a load balancer for as long as it watches: the proxy holds calls until a replica takes them.

    Without it gRPC clients that check health, such as polyhead's, write an error line for every connection.
    """
    yield health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING).SerializeToString()
    await asyncio.Event().wait()


class _ContextWithDeadline:
    """gRPC's context of a call, with the seconds that are left to it among its metadata."""

    def __init__(self, context: _Context) -> None:
        self._context = context

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    def invocation_metadata(self) -> list[tuple[str, Any]]:
        metadata = [(key, value) for key, value in self._context.invocation_metadata() or () if key != TIME_REMAINING]
        remaining_s = self._context.time_remaining()
        return metadata if remaining_s is None else [*metadata, (TIME_REMAINING, f"{remaining_s:.6f}")]


async def _explain(context: _Context) -> None:
    """Replaces the status of a call that failed in Ray Serve and not in a replica, whose statuses have details."""
    code: Any = context.code()
    number = code.value[0] if isinstance(code, grpc.StatusCode) else code
    if number in _RAY_ERRORS and not any(key == DETAILS_KEY for key, _ in context.trailing_metadata() or ()):
        await abort(context, _RAY_ERRORS[number]())
