"""OpenTelemetry traces: a span for each call and, below it, spans for the stages of its messages. Never a text.

::

    call (child of the client's span, if its traceparent names one)
    +-- message               one for each message of a stream; a unary call has no such span
        +-- tokenization
        +-- queue, batch      one pair for each batch that computed some of the message's items

Spans are created from the timings of results after the results exist, so that nothing waits for tracing. The SDK
exports them from a thread of its own; when its queue is full, it drops spans, never answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from polyhead_server.errors import ServerError, StartupError
from polyhead_server.inference.types import ItemOutcome, Result, Timings

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

    from polyhead_server.inference.model import Model
    from polyhead_server.settings import Settings

# Batches of one message that get spans of their own; the first ones represent a message of more.
_MAX_BATCH_SPANS = 16
# Seconds for the export of the last spans when the server exits.
_FLUSH_S = 2.0
# Statuses that are faults of the server, by OpenTelemetry's semantic conventions for gRPC servers.
_SERVER_FAULTS = frozenset({"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"})


class Tracing:
    """Creates the spans of one server."""

    def __init__(self, provider: TracerProvider) -> None:
        from opentelemetry import propagate, trace

        self._provider = provider
        self._tracer = provider.get_tracer("polyhead", version("polyhead"))
        self._extract = propagate.extract
        self._trace = trace
        # Spans carry wall-clock times, timings the monotonic clock: this is the difference.
        self._wall_clock_offset_ns = time.time_ns() - time.monotonic_ns()

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
            from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import OTELResourceDetector, Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as error:
            raise StartupError(
                f"--otlp-endpoint requires pip install '.[otel]' in polyhead's source directory: {error}"
            ) from error
        defaults = Resource.create({"service.name": "polyhead", "service.version": version("polyhead")})
        # OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES override the defaults.
        provider = TracerProvider(resource=defaults.merge(OTELResourceDetector().detect()), shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=settings.otlp_endpoint)))
        return cls(provider)

    @contextlib.contextmanager
    def call(self, method: str, metadata: Iterable[tuple[str, str]], request_id: str) -> Iterator[Span]:
        """Makes the span of a call current while the context is open.

        Args:
            method: Path of the method.
            metadata: The call's metadata, which may name the client's span as the parent.
            request_id: The call's request id.
        """
        name = method.removeprefix("/")
        attributes = {"rpc.system.name": "grpc", "rpc.method": name, "polyhead.request_id": request_id}
        parent = self._extract(dict(metadata))
        span = self._tracer.start_span(name, parent, self._trace.SpanKind.SERVER, attributes)
        try:
            with self._trace.use_span(span, record_exception=False, set_status_on_exception=False):
                yield span
        finally:
            span.end()

    def end_call(self, span: Span, code: str, items: int) -> None:
        """Records the status of a call and the number of its items."""
        span.set_attribute("rpc.response.status_code", code)
        span.set_attribute("polyhead.items", items)
        if code in _SERVER_FAULTS:
            span.set_attribute("error.type", code)
            span.set_status(self._trace.StatusCode.ERROR)

    def on_message(
        self, model: Model, arrived_ns: int, futures: Sequence[asyncio.Future[ItemOutcome]], stream: bool
    ) -> None:
        """Traces a message, below the current span, once all of its items have an outcome.

        Args:
            model: The model that computes the items.
            arrived_ns: ``time.monotonic_ns()`` of the message's arrival.
            futures: One for each item.
            stream: Whether the message belongs to a stream.
        """
        span = self._trace.get_current_span()
        if span.is_recording() and futures:
            remaining = len(futures)

            def on_outcome(_: object) -> None:
                nonlocal remaining
                remaining -= 1
                if not remaining:
                    self._trace_message(span, model, arrived_ns, futures, stream)

            for future in futures:
                future.add_done_callback(on_outcome)

    async def close(self) -> None:
        """Exports the remaining spans, for a limited time."""
        loop, done = asyncio.get_running_loop(), asyncio.Event()

        def shut_down() -> None:
            self._provider.shutdown()
            # The loop may be closed by now.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(done.set)

        # A daemon thread does not keep the process alive if the collector does not answer.
        threading.Thread(target=shut_down, name="last-spans", daemon=True).start()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(done.wait(), _FLUSH_S)

    def _trace_message(
        self, call: Span, model: Model, arrived_ns: int, futures: Sequence[asyncio.Future[ItemOutcome]], stream: bool
    ) -> None:
        outcomes = [future.result() for future in futures if not future.cancelled()]
        results = [outcome for outcome in outcomes if isinstance(outcome, Result)]
        attributes: dict[str, Any] = {
            "polyhead.items": len(futures),
            "polyhead.item_errors": sum(isinstance(outcome, ServerError) for outcome in outcomes),
            "polyhead.tokens": sum(result.tokens.used for result in results),
            "polyhead.model_id": model.source.model_id,
            "polyhead.embedding_space": model.fingerprints.embedding_space,
            **{f"polyhead.head.{name}": fingerprint for name, fingerprint in model.fingerprints.heads.items()},
        }
        # Results of one batch share the time at which it finished.
        batches: dict[int, list[Timings]] = {}
        for result in results:
            batches.setdefault(result.timings.finished_ns, []).append(result.timings)
        ended_ns = max(batches, default=time.monotonic_ns())
        if stream:
            parent = self._span("message", call, arrived_ns, attributes)
        else:
            parent = call
            # The span of a cancelled call has ended and accepts no more attributes.
            if parent.is_recording():
                parent.set_attributes(attributes)
        if results:
            first = results[0].timings
            started_ns = arrived_ns + first.admission_ns
            self._span("tokenization", parent, started_ns, {}, started_ns + first.tokenization_ns)
        for finished_ns, timings in list(batches.items())[:_MAX_BATCH_SPANS]:
            self._trace_batch(parent, finished_ns, timings)
        if stream:
            parent.end(self._wall_clock_offset_ns + ended_ns)

    def _trace_batch(self, parent: Span, finished_ns: int, timings: list[Timings]) -> None:
        longest = max(timings, key=lambda one: one.queue_ns)
        started_ns = finished_ns - longest.compute_ns
        own = {"polyhead.items": len(timings)}
        self._span("queue", parent, started_ns - longest.queue_ns, own, started_ns)
        shared = {"polyhead.batch_items": longest.batch_items, "polyhead.batch_tokens": longest.batch_tokens}
        self._span("batch", parent, started_ns, own | shared, finished_ns)

    def _span(
        self, name: str, parent: Span, started_ns: int, attributes: dict[str, Any], ended_ns: int | None = None
    ) -> Span:
        """Starts a span at a monotonic time; ends it too if ``ended_ns`` is given."""
        context = self._trace.set_span_in_context(parent)
        start_time = self._wall_clock_offset_ns + started_ns
        span = self._tracer.start_span(name, context, attributes=attributes, start_time=start_time)
        if ended_ns is not None:
            span.end(self._wall_clock_offset_ns + ended_ns)
        return span
