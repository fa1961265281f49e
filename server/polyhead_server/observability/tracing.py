"""OpenTelemetry traces: a span for each call and, below it, spans for the stages of its messages. Never a text.

::

    call (child of the client's span, if its traceparent names one)
    +-- message               one for each message of a stream; a unary call has no such span
        +-- tokenization
        +-- queue, batch      one pair for each batch that computed some of the message's items

Whether a call is traced is decided before anything is kept for it. Spans are created when the call or the message has
ended, from the timings of its results, so that nothing waits for tracing. The SDK exports them from a thread of its
own; when its queue is full, it drops spans, never answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import Iterable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from polyhead_server.errors import ServerError, StartupError
from polyhead_server.inference.types import OutcomeFuture, Result, Timings

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
    from opentelemetry.trace import SpanContext, SpanKind, TraceState

    from polyhead_server.inference.model import Model
    from polyhead_server.settings import Settings

# Batches of one message that get spans of their own; the first ones represent a message of more.
_MAX_BATCH_SPANS = 16
# Seconds for the export of the last spans when the server exits.
_FLUSH_S = 2.0
# Statuses that are faults of the server, by OpenTelemetry's semantic conventions for gRPC servers.
_SERVER_FAULTS = frozenset({"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"})

Attributes = dict[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class _Message:
    model: Model
    arrived_ns: int
    futures: Sequence[OutcomeFuture]


@dataclass(slots=True, eq=False)
class TracedCall:
    """A call that is traced.

    Attributes:
        context: Ids of its span.
        parent: Ids of the client's span; None for none.
        attributes: Attributes of its span that are known at its beginning.
        started_ns: ``time.monotonic_ns()`` of its beginning.
        messages: Its message, if it is unary.
    """

    context: SpanContext
    parent: SpanContext | None
    attributes: Attributes
    started_ns: int
    messages: list[_Message] = field(default_factory=list)

    @property
    def trace_id(self) -> str:
        """The trace's id in hexadecimal digits."""
        return f"{self.context.trace_id:032x}"


# The traced call to which the running code belongs.
_CALL: ContextVar[TracedCall | None] = ContextVar("traced_call", default=None)


class Tracing:
    """Creates the spans of one server."""

    def __init__(self, provider: TracerProvider, processor: SpanProcessor) -> None:
        """Creates it with the resource, the sampler and the ids of a provider.

        Args:
            provider: Source of the configuration, without processors.
            processor: Receives every span.
        """
        from opentelemetry import propagate, trace
        from opentelemetry.sdk.trace import ReadableSpan
        from opentelemetry.sdk.trace.sampling import Decision
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope

        self._provider = provider
        self._processor = processor
        self._scope = InstrumentationScope("polyhead", version("polyhead"))
        self._extract = propagate.extract
        self._trace = trace
        self._record_and_sample = Decision.RECORD_AND_SAMPLE
        self._sampled = trace.TraceFlags(trace.TraceFlags.SAMPLED)
        self._span_type = ReadableSpan
        # Spans carry wall-clock times, timings the monotonic clock: this is the difference.
        self._wall_clock_offset_ns = time.time_ns() - time.monotonic_ns()
        # The attributes of every span of a model's messages: one dictionary for each model, the serving one last.
        self._model_attributes: tuple[Model | None, Attributes] = None, {}

    @classmethod
    def from_settings(cls, settings: Settings) -> Tracing | None:
        """Creates what the settings ask for; None without an endpoint, in which case nothing is imported.

        Raises:
            StartupError: The endpoint is not a valid URL, or the required packages are not installed.
        """
        if not settings.otlp_endpoint:
            return None
        if not settings.otlp_endpoint.startswith(("http://", "https://")):
            raise StartupError(
                f"--otlp-endpoint {settings.otlp_endpoint} is not a valid URL, such as http://127.0.0.1:4317"
            )
        try:
            from opentelemetry.sdk.resources import OTELResourceDetector, Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor

            from .otlp import SpanExporter
        except ImportError as error:
            raise StartupError(
                f"--otlp-endpoint requires pip install '.[otel]' in polyhead's source directory: {error}"
            ) from error
        if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
            return None
        defaults = Resource.create({"service.name": "polyhead", "service.version": version("polyhead")})
        # OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES override the defaults.
        provider = TracerProvider(resource=defaults.merge(OTELResourceDetector().detect()), shutdown_on_exit=False)
        return cls(provider, BatchSpanProcessor(SpanExporter(endpoint=settings.otlp_endpoint)))

    def begin_call(self, method: str, metadata: Iterable[tuple[str, str]], request_id: str) -> TracedCall | None:
        """Begins the span of a call, to which messages of the running context belong from now on.

        Args:
            method: Path of the method.
            metadata: The call's metadata, which may name the client's span as the parent.
            request_id: The call's request id.

        Returns:
            The call; None if it is not sampled.
        """
        name, trace = method.removeprefix("/"), self._trace
        parent_context = self._extract(dict(metadata))
        parent = trace.get_current_span(parent_context).get_span_context()
        generator = self._provider.id_generator
        trace_id = parent.trace_id if parent.is_valid else generator.generate_trace_id()
        attributes = {"rpc.system.name": "grpc", "rpc.method": name}
        server: SpanKind = trace.SpanKind.SERVER
        sampling = self._provider.sampler.should_sample(parent_context, trace_id, name, server, attributes)
        if sampling.decision is not self._record_and_sample:
            return None
        context = self._context(trace_id, sampling.trace_state)
        own = {**(sampling.attributes or {}), "polyhead.request_id": request_id}
        call = TracedCall(context, parent if parent.is_valid else None, own, time.monotonic_ns())
        _CALL.set(call)
        return call

    def end_call(self, call: TracedCall, code: str, items: int) -> None:
        """Creates the span of a call that has ended and, for a unary one, those of its message.

        Args:
            call: The call.
            code: Its status.
            items: Number of its items.
        """
        trace, attributes = self._trace, call.attributes
        ended_ns = time.monotonic_ns()
        for message in call.messages:
            attributes |= self._trace_message(call.context, message)[0]
        attributes["rpc.response.status_code"] = code
        attributes["polyhead.items"] = items
        status = trace.Status()
        if code in _SERVER_FAULTS:
            attributes["error.type"] = code
            status = trace.Status(trace.StatusCode.ERROR)
        self._emit(
            attributes["rpc.method"],
            call.context,
            call.parent,
            attributes,
            (call.started_ns, ended_ns),
            kind=trace.SpanKind.SERVER,
            status=status,
        )

    def on_message(self, model: Model, arrived_ns: int, futures: Sequence[OutcomeFuture], stream: bool) -> None:
        """Traces a message of the current call once all of its items have an outcome.

        Args:
            model: The model that computes the items.
            arrived_ns: ``time.monotonic_ns()`` of the message's arrival.
            futures: One for each item.
            stream: Whether the message belongs to a stream.
        """
        call = _CALL.get()
        if call is None or not futures:
            return
        message = _Message(model, arrived_ns, futures)
        if stream:
            self._follow(call.context, message, 0)
        else:
            call.messages.append(message)

    async def close(self) -> None:
        """Exports the remaining spans, for a limited time."""
        loop, done = asyncio.get_running_loop(), asyncio.Event()

        def shut_down() -> None:
            self._processor.shutdown()
            # The loop may be closed by now.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(done.set)

        # A daemon thread does not keep the process alive if the collector does not answer.
        threading.Thread(target=shut_down, name="last-spans", daemon=True).start()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(done.wait(), _FLUSH_S)

    def _follow(self, call: SpanContext, message: _Message, first: int) -> None:
        """Waits for the outcomes from ``first`` on, with a callback for each that is not known at its turn."""
        futures = message.futures
        unknown = next((index for index in range(first, len(futures)) if not futures[index].done()), len(futures))
        if unknown < len(futures):
            # Most of the others are resolved together with this one.
            futures[unknown].add_done_callback(lambda _: self._follow(call, message, unknown))
            return
        context = self._context(call.trace_id, call.trace_state)
        attributes, ended_ns = self._trace_message(context, message)
        self._emit("message", context, call, attributes, (message.arrived_ns, ended_ns))

    def _trace_message(self, parent: SpanContext, message: _Message) -> tuple[Attributes, int]:
        """Creates the spans of a message's stages.

        Returns:
            The attributes of the message's own span, and the time at which its last batch finished.
        """
        outcomes = [future.result() for future in message.futures if future.done() and not future.cancelled()]
        results = [outcome for outcome in outcomes if isinstance(outcome, Result)]
        # Results of one batch share the time at which it finished.
        batches: dict[int, list[Timings]] = {}
        cached = 0
        for result in results:
            if result.timings.is_cached:
                cached += 1
            else:
                batches.setdefault(result.timings.finished_ns, []).append(result.timings)
        attributes: Attributes = {
            "polyhead.items": len(message.futures),
            "polyhead.item_errors": sum([isinstance(outcome, ServerError) for outcome in outcomes]),
            "polyhead.tokens": sum([result.tokens.used for result in results]),
            **({"polyhead.cached_items": cached} if cached else {}),
            **self._attributes_of(message.model),
        }
        if results:
            first = results[0].timings
            started_ns = message.arrived_ns + first.admission_ns
            self._stage("tokenization", parent, {}, started_ns, started_ns + first.tokenization_ns)
        for finished_ns, timings in list(batches.items())[:_MAX_BATCH_SPANS]:
            self._trace_batch(parent, finished_ns, timings)
        ended_ns = max([result.timings.finished_ns for result in results], default=time.monotonic_ns())
        return attributes, ended_ns

    def _attributes_of(self, model: Model) -> Attributes:
        known, attributes = self._model_attributes
        if known is not model:
            attributes = {
                "polyhead.model_id": model.source.model_id,
                "polyhead.embedding_space": model.fingerprints.embedding_space,
                **{f"polyhead.head.{name}": fingerprint for name, fingerprint in model.fingerprints.heads.items()},
            }
            self._model_attributes = model, attributes
        return attributes

    def _trace_batch(self, parent: SpanContext, finished_ns: int, timings: list[Timings]) -> None:
        longest = max(timings, key=lambda one: one.queue_ns)
        started_ns = finished_ns - longest.compute_ns
        own = {"polyhead.items": len(timings)}
        self._stage("queue", parent, own, started_ns - longest.queue_ns, started_ns)
        shared = {"polyhead.batch_items": longest.batch_items, "polyhead.batch_tokens": longest.batch_tokens}
        self._stage("batch", parent, own | shared, started_ns, finished_ns)

    def _stage(self, name: str, parent: SpanContext, attributes: Attributes, started_ns: int, ended_ns: int) -> None:
        context = self._context(parent.trace_id, parent.trace_state)
        self._emit(name, context, parent, attributes, (started_ns, ended_ns))

    def _context(self, trace_id: int, trace_state: TraceState | None) -> SpanContext:
        """Makes the ids of a new span."""
        span_id = self._provider.id_generator.generate_span_id()
        return self._trace.SpanContext(trace_id, span_id, False, self._sampled, trace_state)

    def _emit(
        self,
        name: str,
        context: SpanContext,
        parent: SpanContext | None,
        attributes: Attributes,
        times_ns: tuple[int, int],
        **more: Any,
    ) -> None:
        """Hands a span to the processor; the times are monotonic."""
        started_ns, ended_ns = times_ns
        span = self._span_type(
            name,
            context,
            parent,
            self._provider.resource,
            attributes,
            start_time=self._wall_clock_offset_ns + started_ns,
            end_time=self._wall_clock_offset_ns + ended_ns,
            instrumentation_scope=self._scope,
            **more,
        )
        self._processor.on_end(span)
