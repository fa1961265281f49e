"""Request ids, metrics, access log and traces of every inference call. None of them ever contains a text.

::

    metadata -> request id, traceparent -> the other interceptors -> the call -> metrics, access log, span
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import grpc
from grpc import aio
from polyhead.v1 import inference_service_pb2

from polyhead_server.candidate.routing import HEADER, ROUTING_KEY, routing_key
from polyhead_server.observability.logging import REQUEST_CONTEXT, fields
from polyhead_server.observability.metrics import Metrics
from polyhead_server.observability.request_ids import REQUEST_ID, request_id
from polyhead_server.observability.tracing import TracedCall, Tracing
from polyhead_server.security.api_keys import CALLER
from polyhead_server.settings import Settings

logger = logging.getLogger(__name__)

_SERVICE = inference_service_pb2.DESCRIPTOR.services_by_name["InferenceService"]
# Path to name of the methods that are observed. Others are probes, or names that a client made up, each of which would
# become a metric series.
_METHODS = {f"/{_SERVICE.full_name}/{method.name}": method.name for method in _SERVICE.methods}
# Tolerance for a client's clock that runs ahead: at its deadline a client resets the call, as it does to cancel it.
_CLOCK_SKEW_S = 0.05
_CODE_NAMES = {code.value[0]: code.name for code in grpc.StatusCode}

_Context = aio.ServicerContext[Any, Any]
if TYPE_CHECKING:
    _RpcMethodHandler = grpc.RpcMethodHandler[Any, Any]
else:
    # Generic in the type stubs alone.
    _RpcMethodHandler = grpc.RpcMethodHandler


class TelemetryInterceptor(aio.ServerInterceptor):
    """Observes every call of the inference service, including those that other interceptors reject.

    Attributes:
        metrics: Count the calls.
    """

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        tracing: Tracing | None,
        dialect_methods: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Creates the interceptor.

        Args:
            settings: The server's.
            metrics: Counts the calls.
            tracing: Traces the calls; None for no traces.
            dialect_methods: The names in metrics of the dialects' methods, by their paths.
        """
        self.metrics = metrics
        self._methods = {**_METHODS, **dialect_methods}
        metrics.initialize_requests(self._methods.values())
        self._tracing = tracing
        self._level = logging.getLevelName(settings.access_log.upper())

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: grpc.HandlerCallDetails
    ) -> Any:
        """Wraps the handlers of the inference service; leaves those of other services unchanged."""
        if str(handler_call_details.method) not in self._methods:
            return await continuation(handler_call_details)
        call = _CallRecord(handler_call_details)
        REQUEST_CONTEXT.set({"request_id": call.request_id})
        handler = await continuation(handler_call_details)
        if handler is None:
            # A service that is not enabled.
            return None
        # The error interceptor receives unary calls like streams of one message.
        observed = _ObservedStream if handler.stream_stream else _ObservedUnary
        return observed(self, handler, call)

    def begin(self, call: _CallRecord, context: _Context) -> TracedCall | None:
        """Observes a call whose handler begins; returns its span if it is traced."""
        context.set_trailing_metadata(((REQUEST_ID, call.request_id),))
        ROUTING_KEY.set(routing_key(call.routing_header, CALLER.get(), context.peer() or ""))
        traced = None
        if self._tracing and (traced := self._tracing.begin_call(call.path, call.metadata, call.request_id)):
            REQUEST_CONTEXT.set({"request_id": call.request_id, "trace_id": traced.trace_id})
        return traced

    def end(self, call: _CallRecord, code: str, context: _Context, traced: TracedCall | None) -> None:
        """Observes a call that has ended with a status."""
        duration_s = time.monotonic() - call.started
        method = self._methods[call.path]
        self.metrics.observe_request(method, code, duration_s, unary="Stream" not in method)
        if logger.isEnabledFor(self._level):
            caller, peer = CALLER.get(), context.peer()
            values = {"method": method, "code": code, "items": call.items, "duration_s": round(duration_s, 6)}
            text = "%s %s, items: %d, %.1f ms, %s at %s"
            arguments = (method, code, call.items, duration_s * 1000, caller or "anonymous", peer)
            # Whoever has no key cannot write lines without a limit.
            extra = {**fields(**values, peer=peer, key=caller), "unlimited": code != "UNAUTHENTICATED"}
            logger.log(self._level, text, *arguments, extra=extra)
        if self._tracing and traced:
            self._tracing.end_call(traced, code, call.items)


class _CallRecord:
    """A call's path, metadata, request id and start, and the number of its items decoded so far."""

    __slots__ = ("items", "metadata", "path", "request_id", "routing_header", "started")

    def __init__(self, details: grpc.HandlerCallDetails) -> None:
        self.started = time.monotonic()
        self.items = 0
        self.path = str(details.method)
        self.metadata: Any = details.invocation_metadata or ()
        received = self.routing_header = ""
        for name, value in self.metadata:
            if name == REQUEST_ID:
                received = received or str(value)
            elif name == HEADER:
                self.routing_header = self.routing_header or str(value)
        self.request_id = request_id(received)


class _ObservedCall(_RpcMethodHandler):
    """The handler of one call, which gRPC runs.

    gRPC's own factories would take closures, made anew for each call at several times the cost.
    """

    request_streaming = True

    def __init__(self, telemetry: TelemetryInterceptor, handler: Any, call: _CallRecord) -> None:
        self._telemetry = telemetry
        self._handler = handler
        self._call = call

    def request_deserializer(self, data: bytes) -> Any:
        """Deserializes a message."""
        self._telemetry.metrics.observe_request_bytes(len(data))
        deserialize = self._handler.request_deserializer
        message = data if deserialize is None else deserialize(data)
        # Messages of the dialects are not counted: those that carry texts carry one, or a tensor.
        self._call.items += len(getattr(message, "items", ()))
        return message

    def response_serializer(self, message: Any) -> bytes:
        """Serializes a response."""
        serialize = self._handler.response_serializer
        data: bytes = message if serialize is None else serialize(message)
        self._telemetry.metrics.observe_response_bytes(len(data))
        return data

    async def run(self, request: Any, context: _Context) -> Any:
        """Runs the handler, and observes how the call ends."""
        traced = self._telemetry.begin(self._call, context)
        code = "UNKNOWN"
        try:
            response = await (self._handler.stream_unary or self._handler.stream_stream)(request, context)
        except aio.AbortError:
            code = _code_name(context)
            raise
        except asyncio.CancelledError:
            remaining_s = context.time_remaining()
            cancelled = remaining_s is None or remaining_s > _CLOCK_SKEW_S
            code = "CANCELLED" if cancelled else "DEADLINE_EXCEEDED"
            raise
        else:
            code = _code_name(context)
            return response
        finally:
            self._telemetry.end(self._call, code, context, traced)


class _ObservedUnary(_ObservedCall):
    response_streaming = False
    # The type stubs describe the handlers of synchronous servers alone.
    stream_unary: Any = _ObservedCall.run
    stream_stream = None


class _ObservedStream(_ObservedCall):
    response_streaming = True
    stream_unary = None
    stream_stream: Any = _ObservedCall.run


def _code_name(context: _Context) -> str:
    """The name of the call's status code; OK unless the handler has set another."""
    code: Any = context.code()
    return code.name if isinstance(code, grpc.StatusCode) else _CODE_NAMES[code or 0]
