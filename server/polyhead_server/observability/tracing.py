"""OpenTelemetry traces: a span for each call, and below it where the time of its messages went. Never a text.

::

    call (the client's traceparent above it)
    +-- message               one of a stream; a unary call has one and no span for it
        +-- tokenization
        +-- queue, pass       once for each pass that computed some of its items

Spans are made of the timings that every answer has, after it was given, so that nothing waits for them. The SDK exports
them from a thread of its own; when its queue is full, spans are dropped and never an answer.
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

# Passes of one message that have spans of their own; a message of more is told by those that came first.
_MOST_PASSES = 16
# Seconds that the last spans have to leave when the server ends.
_FLUSH_S = 2.0
# Statuses that are the server's fault, by OpenTelemetry's conventions for gRPC servers.
_FAULTS = frozenset({"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"})


class Tracing:
    """What one server traces."""

    def __init__(self, provider: TracerProvider) -> None:
        from opentelemetry import propagate, trace

        self._provider = provider
        self._tracer = provider.get_tracer("polyhead", version("polyhead"))
        self._extract = propagate.extract
        self._trace = trace
        # Spans are stamped with the time of day, everything else is measured by a clock that nobody sets.
        self._clocks_apart_ns = time.time_ns() - time.monotonic_ns()

    @classmethod
    def from_settings(cls, settings: Settings) -> Tracing | None:
        """What the settings ask for; None where they ask for nothing, which costs nothing.

        Raises:
            StartupError: The endpoint is no URL, or the packages that it takes are not installed.
        """
        if not settings.otlp_endpoint:
            return None
        if not settings.otlp_endpoint.startswith(("http://", "https://")):
            raise StartupError(f"--otlp-endpoint {settings.otlp_endpoint} is no URL such as http://127.0.0.1:4317")
        try:
            from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import OTELResourceDetector, Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as error:
            raise StartupError(f"--otlp-endpoint wants pip install '.[otel]' in polyhead's sources: {error}") from error
        named = Resource.create({"service.name": "polyhead", "service.version": version("polyhead")})
        # The environment has the last word: OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES.
        provider = TracerProvider(resource=named.merge(OTELResourceDetector().detect()), shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=settings.otlp_endpoint)))
        return cls(provider)

    @contextlib.contextmanager
    def call(self, method: str, metadata: Iterable[tuple[str, str]], request_id: str) -> Iterator[Span]:
        """The span of a call, for as long as it lasts; that of the client, in its metadata, is the one above."""
        name = method.removeprefix("/")
        attributes = {"rpc.system.name": "grpc", "rpc.method": name, "polyhead.request_id": request_id}
        parent = self._extract(dict(metadata))
        span = self._tracer.start_span(name, parent, self._trace.SpanKind.SERVER, attributes)
        try:
            with self._trace.use_span(span, record_exception=False, set_status_on_exception=False):
                yield span
        finally:
            span.end()

    def ended(self, span: Span, code: str, items: int) -> None:
        """Says how a call ended."""
        span.set_attribute("rpc.response.status_code", code)
        span.set_attribute("polyhead.items", items)
        if code in _FAULTS:
            span.set_attribute("error.type", code)
            span.set_status(self._trace.StatusCode.ERROR)

    def follow(
        self, model: Model, arrived_ns: int, futures: Sequence[asyncio.Future[ItemOutcome]], stream: bool
    ) -> None:
        """Traces a message, below the span that is current, once all of its items have their outcome."""
        span = self._trace.get_current_span()
        if span.is_recording() and futures:
            left = len(futures)

            def one_more(_: object) -> None:
                nonlocal left
                left -= 1
                if not left:
                    self._message(span, model, arrived_ns, futures, stream)

            for future in futures:
                future.add_done_callback(one_more)

    async def close(self) -> None:
        """Exports what is left, for as long as that may take."""
        loop, done = asyncio.get_running_loop(), asyncio.Event()

        def shut_down() -> None:
            self._provider.shutdown()
            # Nobody may be waiting any more.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(done.set)

        # A daemon keeps nobody from leaving when the receiver is not there.
        threading.Thread(target=shut_down, name="last-spans", daemon=True).start()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(done.wait(), _FLUSH_S)

    def _message(
        self, call: Span, model: Model, arrived_ns: int, futures: Sequence[asyncio.Future[ItemOutcome]], stream: bool
    ) -> None:
        outcomes = [future.result() for future in futures if not future.cancelled()]
        results = [outcome for outcome in outcomes if isinstance(outcome, Result)]
        attributes: dict[str, Any] = {
            "polyhead.items": len(futures),
            "polyhead.refused_items": sum(isinstance(outcome, ServerError) for outcome in outcomes),
            "polyhead.tokens": sum(result.tokens.used for result in results),
            "polyhead.model_id": model.source.model_id,
            "polyhead.embedding_space": model.fingerprints.embedding_space,
            **{f"polyhead.head.{name}": print_ for name, print_ in model.fingerprints.heads.items()},
        }
        passes: dict[int, list[Timings]] = {}
        for result in results:
            passes.setdefault(result.timings.finished_ns, []).append(result.timings)
        ended_ns = max(passes, default=time.monotonic_ns())
        if stream:
            above = self._span("message", call, arrived_ns, attributes)
        else:
            above = call
            # One that was cancelled has ended, and takes nothing more.
            if above.is_recording():
                above.set_attributes(attributes)
        if results:
            first = results[0].timings
            begun_ns = arrived_ns + first.admission_ns
            self._span("tokenization", above, begun_ns, {}, begun_ns + first.tokenization_ns)
        for finished_ns, timings in list(passes.items())[:_MOST_PASSES]:
            self._pass(above, finished_ns, timings)
        if stream:
            above.end(self._clocks_apart_ns + ended_ns)

    def _pass(self, above: Span, finished_ns: int, timings: list[Timings]) -> None:
        longest = max(timings, key=lambda one: one.queue_ns)
        started_ns = finished_ns - longest.compute_ns
        own = {"polyhead.items": len(timings)}
        self._span("queue", above, started_ns - longest.queue_ns, own, started_ns)
        shared = {"polyhead.batch_items": longest.batch_items, "polyhead.batch_tokens": longest.batch_tokens}
        self._span("pass", above, started_ns, own | shared, finished_ns)

    def _span(
        self, name: str, above: Span, started_ns: int, attributes: dict[str, Any], ended_ns: int | None = None
    ) -> Span:
        context = self._trace.set_span_in_context(above)
        span = self._tracer.start_span(
            name, context, attributes=attributes, start_time=self._clocks_apart_ns + started_ns
        )
        if ended_ns is not None:
            span.end(self._clocks_apart_ns + ended_ns)
        return span
