"""Spans of calls over a real socket, with the fake engine; the exporter keeps them in memory."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from grpc import aio
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider, sampling
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from polyhead.v1 import inference_service_pb2 as pb2
from polyhead.v1 import inference_service_pb2_grpc, item_pb2
from polyhead_server.errors import StartupError
from polyhead_server.inference.model import Model
from polyhead_server.inference.pipeline import Pipeline
from polyhead_server.observability.metrics import Metrics
from polyhead_server.observability.tracing import Tracing
from polyhead_server.rpc import service_names
from polyhead_server.rpc.inference_service import InferenceService
from polyhead_server.rpc.interceptors.errors import ErrorInterceptor
from polyhead_server.rpc.interceptors.telemetry import TelemetryInterceptor
from polyhead_server.rpc.method_table import inference_handler
from polyhead_server.settings import Settings

from tests.support.fake_engine import FakeEngine

pytestmark = pytest.mark.timeout(60)

TRACE_ID, PARENT_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Traced:
    """A server with one compute thread, a stub for it, and its finished spans."""

    def __init__(
        self,
        service: InferenceService,
        stub: Any,
        tracing: Tracing,
        exporter: InMemorySpanExporter,
        settings: Callable[..., Settings],
    ) -> None:
        self.service = service
        self.stub = stub
        self.tracing = tracing
        self.settings = settings
        self._exporter = exporter

    def spans(self) -> dict[str, list[ReadableSpan]]:
        named: dict[str, list[ReadableSpan]] = {}
        for span in self._exporter.get_finished_spans():
            named.setdefault(span.name, []).append(span)
        return named

    async def call(self, method: str) -> ReadableSpan:
        """Waits for the span of the only call of a method; it ends a moment after the client has the response."""
        while not (spans := self.spans().get(f"{service_names.INFERENCE}/{method}")):
            await asyncio.sleep(0)
        (span,) = spans
        return span


@pytest.fixture
async def traced(model: Model, settings: Callable[..., Settings]) -> AsyncIterator[Traced]:
    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    tracing, metrics = Tracing(provider, SimpleSpanProcessor(exporter)), Metrics()
    service = InferenceService(settings(), metrics)
    server = aio.server(
        interceptors=[TelemetryInterceptor(settings(), metrics, tracing), ErrorInterceptor(service_names.INFERENCE)]
    )
    server.add_generic_rpc_handlers((inference_handler(service),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    pipeline = Pipeline(model, settings(), metrics.observe_batches, tracing.on_message)
    pipeline.start()
    service.serve(pipeline)
    async with aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = inference_service_pb2_grpc.InferenceServiceStub(channel)
        yield Traced(service, stub, tracing, exporter, settings)
    await server.stop(None)
    await pipeline.close()
    await tracing.close()


def items(*texts: str) -> list[item_pb2.Item]:
    return [item_pb2.Item(item_id=text, text=text) for text in texts]


def parent_of(span: ReadableSpan) -> int:
    assert span.parent
    return span.parent.span_id


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


async def test_call_continues_the_trace_of_its_client(traced: Traced) -> None:
    metadata = (("traceparent", f"00-{TRACE_ID}-{PARENT_ID}-01"), ("x-request-id", "r-1"))
    await traced.stub.Analyze(pb2.AnalyzeRequest(items=items("w1", "w2")), metadata=metadata)
    call = await traced.call("Analyze")
    assert f"{call.context.trace_id:032x}" == TRACE_ID
    assert f"{parent_of(call):016x}" == PARENT_ID
    values = attributes(call)
    assert (values["rpc.response.status_code"], values["polyhead.request_id"]) == ("OK", "r-1")
    assert call.status.is_unset


async def test_call_that_the_client_does_not_sample_is_not_traced(traced: Traced) -> None:
    unsampled = (("traceparent", f"00-{TRACE_ID}-{PARENT_ID}-00"),)
    await traced.stub.Analyze(pb2.AnalyzeRequest(items=items("w1")), metadata=unsampled)
    # Control: this call is traced.
    await traced.stub.GetModelInfo(pb2.GetModelInfoRequest())
    await traced.call("GetModelInfo")
    assert set(traced.spans()) == {f"{service_names.INFERENCE}/GetModelInfo"}


async def test_spans_of_a_call_show_stages_and_model(traced: Traced, model: Model) -> None:
    await traced.stub.Analyze(pb2.AnalyzeRequest(items=items("w1", "w2 w3", "\x00" * 3)))
    call = await traced.call("Analyze")
    spans = traced.spans()
    (tokenization,), (queue, *_), (batch, *_) = spans["tokenization"], spans["queue"], spans["batch"]
    assert {parent_of(span) for span in (tokenization, queue, batch)} == {call.context.span_id}
    times = [call.start_time, tokenization.start_time, tokenization.end_time, queue.end_time, batch.end_time]
    assert times == sorted(times, key=lambda time: time or 0)
    values = attributes(call)
    assert (values["polyhead.items"], values["polyhead.item_errors"]) == (3, 0)
    assert values["polyhead.embedding_space"] == "e" * 16
    assert values["polyhead.head.topic"] == "t" * 16
    assert values["polyhead.model_id"] == model.source.model_id
    assert sum(attributes(span)["polyhead.items"] for span in spans["batch"]) == 3
    assert attributes(batch)["polyhead.batch_tokens"] > 0


async def test_each_message_of_a_stream_has_a_span_with_its_item_errors(traced: Traced) -> None:
    long = " ".join(["w1"] * 30)
    strict = item_pb2.ItemOptions(truncation=item_pb2.TRUNCATION_POLICY_ERROR)
    requests = [
        pb2.StreamAnalyzeRequest(items=items("w1")),
        pb2.StreamAnalyzeRequest(items=items("w2", long), options=strict),
    ]
    async for _ in traced.stub.StreamAnalyze(iter(requests)):
        pass
    call = await traced.call("StreamAnalyze")
    messages = traced.spans()["message"]
    assert {parent_of(message) for message in messages} == {call.context.span_id}
    counts = [(attributes(one)["polyhead.items"], attributes(one)["polyhead.item_errors"]) for one in messages]
    assert sorted(counts) == [(1, 0), (2, 1)]
    assert {parent_of(span) for span in traced.spans()["batch"]} == {one.context.span_id for one in messages}
    assert attributes(call)["polyhead.items"] == 3


async def test_server_fault_is_marked_as_an_error(traced: Traced) -> None:
    traced.service.drain()
    with pytest.raises(aio.AioRpcError):
        await traced.stub.Analyze(pb2.AnalyzeRequest(items=items("w1")))
    call = await traced.call("Analyze")
    assert not call.status.is_ok
    assert attributes(call)["error.type"] == "UNAVAILABLE"


async def test_span_of_a_cancelled_call_ends_once(traced: Traced, engine: FakeEngine) -> None:
    engine.gate.clear()
    call = traced.stub.Analyze(pb2.AnalyzeRequest(items=items("w1")))
    await engine.hold()
    call.cancel()
    span = await traced.call("Analyze")
    engine.gate.set()
    assert attributes(span)["rpc.response.status_code"] == "CANCELLED"


async def test_span_of_an_item_from_the_cache_has_no_batch(traced: Traced, model: Model) -> None:
    pipeline = Pipeline(model, traced.settings(answer_cache_mb=1), None, traced.tracing.on_message)
    pipeline.start()
    old = traced.service.pipeline
    assert old
    traced.service.serve(pipeline)
    for texts in (("w1",), ("w1", "w2")):
        await traced.stub.Analyze(pb2.AnalyzeRequest(items=items(*texts)))
    while len(traced.spans().get(f"{service_names.INFERENCE}/Analyze", ())) < 2:
        await asyncio.sleep(0)
    first, second = traced.spans()[f"{service_names.INFERENCE}/Analyze"]
    assert "polyhead.cached_items" not in attributes(first)
    assert attributes(second)["polyhead.cached_items"] == 1
    batches = [span for span in traced.spans()["batch"] if parent_of(span) == second.context.span_id]
    assert [attributes(batch)["polyhead.items"] for batch in batches] == [1]
    traced.service.serve(old)
    await pipeline.close()


async def test_sampler_decides_before_anything_is_kept(traced: Traced) -> None:
    provider = TracerProvider(sampler=sampling.ALWAYS_OFF, shutdown_on_exit=False)
    tracing = Tracing(provider, SimpleSpanProcessor(InMemorySpanExporter()))
    assert tracing.begin_call("/a/b", (), "r-1") is None
    # Control.
    call = traced.tracing.begin_call("/a/b", (), "r-1")
    assert call
    assert len(call.trace_id) == 32


async def test_disabled_sdk_disables_tracing(
    settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert Tracing.from_settings(settings(otlp_endpoint="http://127.0.0.1:4317")) is None


async def test_no_span_contains_a_text(traced: Traced) -> None:
    await traced.stub.Analyze(pb2.AnalyzeRequest(items=items("w199", "w198")))
    await traced.call("Analyze")
    exported = "".join(span.to_json() for spans in traced.spans().values() for span in spans)
    assert "batch" in exported
    assert "w199" not in exported


def test_without_an_endpoint_nothing_is_imported(
    settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    assert Tracing.from_settings(settings()) is None


def test_missing_packages_are_named(settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(StartupError, match=r"\.\[otel\]"):
        Tracing.from_settings(settings(otlp_endpoint="http://127.0.0.1:4317"))


def test_endpoint_that_is_not_a_url_is_rejected(settings: Callable[..., Settings]) -> None:
    with pytest.raises(StartupError, match="http://127"):
        Tracing.from_settings(settings(otlp_endpoint="127.0.0.1:4317"))
