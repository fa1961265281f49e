"""Metrics, request ids and access log of calls over a real socket, with the fake engine."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import aio
from polyhead.v1 import inference_service_pb2 as pb2
from polyhead.v1 import inference_service_pb2_grpc, item_pb2
from polyhead_server.inference.model import Model
from polyhead_server.inference.pipeline import Pipeline
from polyhead_server.observability.logging import REQUEST_CONTEXT
from polyhead_server.observability.metrics import Metrics
from polyhead_server.rpc import service_names
from polyhead_server.rpc.inference_service import InferenceService
from polyhead_server.rpc.interceptors.auth import AuthInterceptor
from polyhead_server.rpc.interceptors.errors import ErrorInterceptor
from polyhead_server.rpc.interceptors.telemetry import TelemetryInterceptor
from polyhead_server.rpc.method_table import inference_handler
from polyhead_server.settings import Settings

from tests.support.fake_engine import FakeEngine

pytestmark = pytest.mark.timeout(60)


class Observed:
    """A server with one compute thread, its metrics, and a channel to it."""

    def __init__(self, metrics: Metrics, service: InferenceService, channel: aio.Channel) -> None:
        self.metrics = metrics
        self.service = service
        self.stub: Any = inference_service_pb2_grpc.InferenceServiceStub(channel)
        self.channel = channel

    def ended(self, method: str, code: str) -> float:
        return self.metrics.value("polyhead_requests_total", method=method, code=code)

    async def until_ended(self, method: str, code: str) -> None:
        """Waits until the server has counted a call: its client may know the outcome earlier."""
        while not self.ended(method, code):
            await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def serving(model: Model, settings: Settings) -> AsyncIterator[Observed]:
    metrics = Metrics()
    service = InferenceService(settings, metrics)
    interceptors = [
        TelemetryInterceptor(settings, metrics, None),
        *AuthInterceptor.from_settings(settings),
        ErrorInterceptor(service_names.INFERENCE),
    ]
    server = aio.server(interceptors=interceptors)
    server.add_generic_rpc_handlers((inference_handler(service),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    pipeline = Pipeline(model, settings, metrics.observe_batches)
    pipeline.start()
    service.serve(pipeline)
    async with aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield Observed(metrics, service, channel)
    await server.stop(None)
    await pipeline.close()


@pytest.fixture
async def observed(model: Model, settings: Callable[..., Settings]) -> AsyncIterator[Observed]:
    async with serving(model, settings()) as observed:
        yield observed


@pytest.fixture
async def guarded(model: Model, settings: Callable[..., Settings], tmp_path: Path) -> AsyncIterator[Observed]:
    """A server that knows one key, "secret", of a caller named "shop"."""
    keys = tmp_path / "keys.toml"
    digest = hashlib.sha256(b"secret").hexdigest()
    keys.write_text(f'[[keys]]\nname = "shop"\nsha256 = "{digest}"\nscopes = ["infer"]\n')
    keys.chmod(0o600)
    async with serving(model, settings(api_keys=str(keys))) as observed:
        yield observed


def request(*texts: str) -> pb2.AnalyzeRequest:
    return pb2.AnalyzeRequest(items=[item_pb2.Item(item_id=text, text=text) for text in texts])


async def request_id(call: Any) -> str:
    return str(dict(await call.trailing_metadata())["x-request-id"])


async def test_unary_call_is_counted_and_timed(observed: Observed) -> None:
    await observed.stub.Analyze(request("w1", "w2"))
    assert observed.ended("Analyze", "OK") == 1
    assert observed.metrics.value("polyhead_request_duration_seconds_count", method="Analyze") == 1
    assert observed.metrics.value("polyhead_request_bytes_sum") == request("w1", "w2").ByteSize()
    assert observed.metrics.value("polyhead_response_bytes_count") == 1


async def test_stream_is_counted_when_it_ends_and_not_timed(observed: Observed) -> None:
    call = observed.stub.StreamClassify(iter([pb2.StreamClassifyRequest(items=request("w1").items)]))
    assert [answer.item_id async for response in call for answer in response.answers] == ["w1"]
    assert observed.ended("StreamClassify", "OK") == 1
    assert observed.metrics.value("polyhead_request_duration_seconds_count", method="StreamClassify") == 0


async def test_failed_call_is_counted_by_its_code(observed: Observed) -> None:
    observed.service.drain()
    with pytest.raises(aio.AioRpcError):
        await observed.stub.Analyze(request("w1"))
    await observed.until_ended("Analyze", "UNAVAILABLE")
    assert observed.ended("Analyze", "OK") == 0


async def test_cancelled_call_is_counted_as_cancelled(observed: Observed, engine: FakeEngine) -> None:
    engine.gate.clear()
    call = observed.stub.Analyze(request("w1"))
    await engine.hold()
    call.cancel()
    await observed.until_ended("Analyze", "CANCELLED")
    engine.gate.set()


@pytest.mark.parametrize(
    ("end", "code"), [("cancel", "CANCELLED"), ("close", "CANCELLED"), ("expire", "DEADLINE_EXCEEDED")]
)
async def test_call_that_ends_during_a_write_is_no_fault_of_the_server(
    end: str, code: str, settings: Callable[..., Settings], caplog: pytest.LogCaptureFixture
) -> None:
    writing = asyncio.Event()

    async def stream(_: Any, context: Any) -> None:
        writing.set()
        # More than the client lets the server send before it reads.
        await context.write(bytes(2**24))

    metrics = Metrics()
    errors = ErrorInterceptor(service_names.INFERENCE)
    server = aio.server(interceptors=[TelemetryInterceptor(settings(), metrics, None), errors])
    handlers: dict[str, Any] = {"StreamAnalyze": grpc.stream_stream_rpc_method_handler(stream)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service_names.INFERENCE, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        observed = Observed(metrics, InferenceService(settings(), metrics), channel)
        await channel.channel_ready()
        call = observed.stub.StreamAnalyze(timeout=1 if end == "expire" else None)
        await writing.wait()
        if end == "cancel":
            call.cancel()
        elif end == "close":
            await channel.close()
        await observed.until_ended("StreamAnalyze", code)
    await server.stop(None)
    assert "incident" not in caplog.text


async def test_call_that_ends_at_its_deadline_is_not_counted_as_cancelled(
    observed: Observed, engine: FakeEngine
) -> None:
    engine.gate.clear()
    await observed.channel.channel_ready()
    with pytest.raises(aio.AioRpcError):
        await observed.stub.Analyze(request("w1"), timeout=2)
    await observed.until_ended("Analyze", "DEADLINE_EXCEEDED")
    engine.gate.set()


async def test_call_without_a_key_is_counted_and_has_a_request_id(guarded: Observed) -> None:
    call = guarded.stub.Analyze(request("w1"))
    with pytest.raises(aio.AioRpcError):
        await call
    await guarded.until_ended("Analyze", "UNAUTHENTICATED")
    assert len(await request_id(call)) == 16


async def test_access_log_names_the_callers_key(guarded: Observed, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "polyhead_server.rpc.interceptors.telemetry")
    await guarded.stub.Analyze(request("w1"), metadata=(("authorization", "Bearer secret"),))
    (line,) = caplog.records
    assert line.fields["key"] == "shop"  # type: ignore[attr-defined]
    assert "shop at ipv4:" in line.getMessage()
    assert "secret" not in caplog.text


async def test_method_name_invented_by_a_client_becomes_no_label(observed: Observed) -> None:
    call: Any = observed.channel.unary_unary(f"/{service_names.INFERENCE}/MadeUp")
    with pytest.raises(aio.AioRpcError) as error:
        await call(b"")
    assert error.value.code() is grpc.StatusCode.UNIMPLEMENTED
    (family,) = [one for one in observed.metrics.registry.collect() if one.name == "polyhead_requests"]
    methods = {sample.labels["method"] for sample in family.samples}
    assert methods == {method.name for method in pb2.DESCRIPTOR.services_by_name["InferenceService"].methods}


async def test_request_id_of_the_client_is_returned(observed: Observed) -> None:
    call = observed.stub.Analyze(request("w1"), metadata=(("x-request-id", "order:7/a"),))
    await call
    assert await request_id(call) == "order:7/a"


@pytest.mark.parametrize("received", ["", "two words", "x" * 129, "a\\n"])
async def test_request_id_that_is_unsafe_in_a_log_is_replaced(observed: Observed, received: str) -> None:
    call = observed.stub.Analyze(request("w1"), metadata=(("x-request-id", received),))
    await call
    assert len(await request_id(call)) == 16


async def test_request_ids_are_unique(observed: Observed) -> None:
    calls = [observed.stub.Analyze(request("w1")) for _ in range(3)]
    await asyncio.gather(*calls)
    assert len({await request_id(call) for call in calls}) == 3


async def test_error_carries_request_id_and_details(observed: Observed) -> None:
    observed.service.drain()
    call = observed.stub.Analyze(request("w1"), metadata=(("x-request-id", "r-1"),))
    with pytest.raises(aio.AioRpcError):
        await call
    assert await request_id(call) == "r-1"
    assert dict(await call.trailing_metadata())["grpc-status-details-bin"]


async def test_log_lines_of_a_call_carry_its_request_id(
    observed: Observed, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[str] = []

    async def fail(*_: object, **__: object) -> None:
        seen.append(REQUEST_CONTEXT.get()["request_id"])
        raise ValueError("odd")

    assert observed.service.pipeline is not None
    monkeypatch.setattr(observed.service.pipeline, "submit", fail)
    with pytest.raises(aio.AioRpcError):
        await observed.stub.Analyze(request("w1"), metadata=(("x-request-id", "r-1"),))
    # The reader of a stream runs in a separate task.
    call = observed.stub.StreamAnalyze(
        iter([pb2.StreamAnalyzeRequest(items=request("w1").items)]), metadata=(("x-request-id", "r-2"),)
    )
    with pytest.raises(aio.AioRpcError):
        await call.read()
    assert seen == ["r-1", "r-2"]
    assert "r-1" not in REQUEST_CONTEXT.get().values()


async def test_access_log_describes_each_call_without_its_texts(
    observed: Observed, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "polyhead_server")
    await observed.stub.Analyze(request("w1", "w2"))
    (line,) = [line for line in caplog.records if line.name == "polyhead_server.rpc.interceptors.telemetry"]
    values: dict[str, Any] = line.fields  # type: ignore[attr-defined]
    assert (line.levelno, values["method"], values["code"], values["items"]) == (logging.DEBUG, "Analyze", "OK", 2)
    assert values["duration_s"] > 0
    assert values["peer"].startswith("ipv4:127.0.0.1:")
    assert "w1" not in caplog.text


async def test_method_of_a_service_that_is_not_enabled_is_unimplemented(settings: Callable[..., Settings]) -> None:
    server = aio.server(
        interceptors=[TelemetryInterceptor(settings(), Metrics(), None), ErrorInterceptor(service_names.INFERENCE)]
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        method: Any = channel.unary_unary(f"/{service_names.INFERENCE}/Analyze")
        assert await method(b"", timeout=10).code() is grpc.StatusCode.UNIMPLEMENTED
    await server.stop(None)
