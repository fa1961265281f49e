"""The outermost layer: every call of ours gets a request id, and is counted, logged and traced. Never a text.

::

    metadata -> request id, traceparent -> the other interceptors -> the call -> metrics, access log, span
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from grpc import aio
from polyhead.v1 import inference_service_pb2

from polyhead_server.observability.logging import REQUEST_CONTEXT, fields
from polyhead_server.observability.metrics import Metrics
from polyhead_server.observability.tracing import Tracing
from polyhead_server.security.api_keys import CALLER
from polyhead_server.settings import Settings

logger = logging.getLogger(__name__)

REQUEST_ID = "x-request-id"
# A client's id is taken as it is or not at all: nothing that a log or a search would choke on.
_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
_SERVICE = inference_service_pb2.DESCRIPTOR.services_by_name["InferenceService"]
# Only these are observed: others are probes, and names that clients make up, of which each would be a metric.
_METHODS = {f"/{_SERVICE.full_name}/{method.name}": method.name for method in _SERVICE.methods}
# By so many seconds a client's clock may be ahead, which ends its call at the deadline just as leaving it does.
_AHEAD_S = 0.05
_CODES = {code.value[0]: code.name for code in grpc.StatusCode}

_Context = aio.ServicerContext[Any, Any]


class TelemetryInterceptor(aio.ServerInterceptor):
    """Sees the beginning and the end of every call of the inference service, also of those that others refuse."""

    def __init__(self, settings: Settings, metrics: Metrics, tracing: Tracing | None) -> None:
        self._metrics = metrics
        metrics.expect_calls(_METHODS.values())
        self._tracing = tracing
        self._level = logging.getLevelName(settings.access_log.upper())

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: grpc.HandlerCallDetails
    ) -> Any:
        """Wraps the handlers of our service and leaves all others alone."""
        if str(handler_call_details.method) not in _METHODS:
            return await continuation(handler_call_details)
        call = _Call(handler_call_details)
        REQUEST_CONTEXT.set({"request_id": call.request_id})
        handler = await continuation(handler_call_details)
        make = grpc.stream_stream_rpc_method_handler if handler.stream_stream else grpc.unary_unary_rpc_method_handler
        return make(
            self._observed(handler.stream_stream or handler.unary_unary, call),
            handler.request_deserializer and self._reading(handler.request_deserializer, call),
            handler.response_serializer and self._writing(handler.response_serializer),
        )

    def _observed(self, behavior: Callable[..., Awaitable[Any]], call: _Call) -> Callable[..., Awaitable[Any]]:
        async def observed(request: Any, context: _Context) -> Any:
            context.set_trailing_metadata(((REQUEST_ID, call.request_id),))
            traced = self._tracing.call(call.path, call.metadata, call.request_id) if self._tracing else _UNTRACED
            with traced as span:
                if self._tracing:
                    REQUEST_CONTEXT.set(
                        {"request_id": call.request_id, "trace_id": f"{span.get_span_context().trace_id:032x}"}
                    )
                code = "UNKNOWN"
                try:
                    answer = await behavior(request, context)
                except aio.AbortError:
                    code = _code(context)
                    raise
                except asyncio.CancelledError:
                    left_s = context.time_remaining()
                    code = "CANCELLED" if left_s is None or left_s > _AHEAD_S else "DEADLINE_EXCEEDED"
                    raise
                else:
                    code = _code(context)
                    return answer
                finally:
                    self._end(call, code, context)
                    if self._tracing:
                        self._tracing.ended(span, code, call.items)

        return observed

    def _reading(self, deserialize: Callable[[bytes], Any], call: _Call) -> Callable[[bytes], Any]:
        def read(data: bytes) -> Any:
            self._metrics.requested(len(data))
            message = deserialize(data)
            # GetModelInfo's has none.
            call.items += len(message.items) if message else 0
            return message

        return read

    def _writing(self, serialize: Callable[[Any], bytes]) -> Callable[[Any], bytes]:
        def write(message: Any) -> bytes:
            data = serialize(message)
            self._metrics.responded(len(data))
            return data

        return write

    def _end(self, call: _Call, code: str, context: _Context) -> None:
        seconds = time.monotonic() - call.began
        method = _METHODS[call.path]
        self._metrics.called(method, code, seconds, unary=not method.startswith("Stream"))
        if logger.isEnabledFor(self._level):
            said = {"method": method, "code": code, "items": call.items, "duration_s": round(seconds, 6)}
            extra = fields(**said, peer=context.peer(), key=CALLER.get())
            who = f"{CALLER.get() or 'anybody'} at {context.peer()}"
            text = "%s %s, items: %d, %.1f ms, %s"
            logger.log(self._level, text, method, code, call.items, seconds * 1000, who, extra=extra)


class _Call:
    """What is known of a call when it begins, and the items of it that were read."""

    __slots__ = ("began", "items", "metadata", "path", "request_id")

    def __init__(self, details: grpc.HandlerCallDetails) -> None:
        self.began = time.monotonic()
        self.items = 0
        self.path = str(details.method)
        self.metadata: Any = details.invocation_metadata or ()
        given = next((value for name, value in self.metadata if name == REQUEST_ID), "")
        self.request_id = str(given) if _ID.fullmatch(str(given)) else secrets.token_hex(8)


_UNTRACED: contextlib.nullcontext[Any] = contextlib.nullcontext()


def _code(context: _Context) -> str:
    """The name of the status that the call has; OK where nobody has said otherwise."""
    code: Any = context.code()
    return code.name if isinstance(code, grpc.StatusCode) else _CODES[code or 0]
