"""Calls on the real service and interceptors through Ray Serve's interface, without Ray and without a gRPC server."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from polyhead.v1 import inference_service_pb2 as pb2
from polyhead_server.inference.model import Model
from polyhead_server.inference.pipeline import Pipeline
from polyhead_server.observability.metrics import Metrics
from polyhead_server.ray_serve.handler_calls import TIME_REMAINING, HandlerCalls
from polyhead_server.rpc import service_names
from polyhead_server.rpc.inference_service import InferenceService
from polyhead_server.rpc.interceptors.auth import AuthInterceptor
from polyhead_server.rpc.interceptors.errors import DETAILS_KEY, ErrorInterceptor
from polyhead_server.rpc.interceptors.telemetry import TelemetryInterceptor
from polyhead_server.rpc.method_table import inference_handler
from polyhead_server.settings import Settings

from tests.support.fake_engine import FakeEngine, embedding_of
from tests.support.inference_server import embedding, items
from tests.support.polling import until

ANALYZE, STREAM = (f"/{service_names.INFERENCE}/{name}" for name in ("Analyze", "StreamAnalyze"))
MAX_MESSAGE_BYTES = 10_000


class Context:
    """Ray's context of a call."""

    def __init__(self, *metadata: tuple[str, str]) -> None:
        self.metadata = list(metadata)
        self.code: grpc.StatusCode | None = None
        self.details = ""
        self.trailing: dict[str, Any] = {}

    def invocation_metadata(self) -> list[tuple[str, str]]:
        return self.metadata

    def peer(self) -> str:
        return "ipv4:192.0.2.1:1234"

    def set_code(self, code: grpc.StatusCode) -> None:
        self.code = code

    def set_details(self, details: str) -> None:
        self.details = details

    def set_trailing_metadata(self, metadata: list[Any]) -> None:
        self.trailing = dict(metadata)

    @property
    def reason(self) -> str:
        info = error_details_pb2.ErrorInfo()
        assert status_pb2.Status.FromString(self.trailing[DETAILS_KEY]).details[0].Unpack(info)
        return str(info.reason)


class Replica:
    """The service and the calls on it."""

    def __init__(self, service: InferenceService, calls: HandlerCalls, metrics: Metrics) -> None:
        self.service, self.calls, self.metrics = service, calls, metrics

    async def unary(self, data: bytes, context: Context, method: str = ANALYZE) -> Any:
        response = await self.calls.unary(method, data, context)
        return pb2.AnalyzeResponse.FromString(response.SerializeToString())

    async def stream(self, messages: Iterable[bytes], context: Context, method: str = STREAM) -> list[Any]:
        responses = self.calls.stream(method, feed(messages), context)
        answers = [pb2.StreamAnalyzeResponse.FromString(one.SerializeToString()) async for one in responses]
        return [answer for response in answers for answer in response.answers]


async def feed(messages: Iterable[bytes]) -> AsyncIterator[bytes]:
    for message in messages:
        yield message


@pytest.fixture
async def replica(model: Model, settings: Callable[..., Settings], tmp_path: Path) -> AsyncIterator[Replica]:
    keys = tmp_path / "keys.toml"
    digest = hashlib.sha256(b"key").hexdigest()
    keys.write_text(f'[[keys]]\nname = "shop"\nsha256 = "{digest}"\nscopes = ["infer"]\n')
    keys.chmod(0o600)
    values, metrics = settings(api_keys=str(keys), stream_window=8), Metrics()
    service = InferenceService(values, metrics)
    pipeline = Pipeline(model, values, metrics.observe_batches)
    pipeline.start()
    service.serve(pipeline)
    interceptors = [
        TelemetryInterceptor(values, metrics, None),
        *AuthInterceptor.from_settings(values),
        ErrorInterceptor(service_names.INFERENCE),
    ]
    yield Replica(service, HandlerCalls([inference_handler(service)], interceptors, MAX_MESSAGE_BYTES), metrics)
    await pipeline.close()


def allowed(*metadata: tuple[str, str]) -> Context:
    return Context(("authorization", "Bearer key"), *metadata)


async def test_a_unary_call_is_answered(replica: Replica) -> None:
    context = allowed(("x-request-id", "abc"))
    response = await replica.unary(pb2.AnalyzeRequest(items=items(["w1", "w2"])).SerializeToString(), context)
    assert [embedding(answer) for answer in response.answers] == [embedding_of("w1"), embedding_of("w2")]
    assert context.code is None
    assert context.trailing["x-request-id"] == "abc"
    assert replica.metrics.value("polyhead_requests_total", method="Analyze", code="OK") == 1
    assert replica.service.stats().requests_running == 0


async def test_a_method_that_does_not_exist_is_refused_like_one_that_the_key_does_not_allow(replica: Replica) -> None:
    context = allowed()
    await replica.unary(b"", context, "/other.Service/Method")
    assert context.code is grpc.StatusCode.PERMISSION_DENIED


async def test_a_stream_that_fails_keeps_the_answers_before(replica: Replica) -> None:
    good = pb2.StreamAnalyzeRequest(items=items(["w1"])).SerializeToString()
    answers = await replica.stream([good, b"x" * (MAX_MESSAGE_BYTES + 1)], context := allowed())
    assert [answer.item_id for answer in answers] == ["w1"]
    assert context.reason == "MESSAGE_TOO_LARGE"


async def test_the_deadline_limits_the_wait(replica: Replica, engine: FakeEngine) -> None:
    async def waiting(text: str, context: Context) -> Any:
        return await replica.unary(pb2.AnalyzeRequest(items=items([text])).SerializeToString(), context)

    engine.gate.clear()
    first = asyncio.create_task(waiting("w1", allowed()))
    await engine.hold()
    # The proxy's value comes after one that the client sent.
    second = asyncio.create_task(waiting("w2", allowed((TIME_REMAINING, "99"), (TIME_REMAINING, "0.05"))))
    await asyncio.sleep(0.2)
    engine.gate.set()
    assert (await first).answers[0].HasField("result")
    assert b"DEADLINE_EXPIRED" in (await second).answers[0].error.SerializeToString()


async def test_a_cancelled_stream_withdraws_its_texts(replica: Replica, engine: FakeEngine) -> None:
    def waiting() -> int:
        assert isinstance(replica.service.pipeline, Pipeline)
        return replica.service.pipeline.scheduler.accounting.waiting_items

    engine.gate.clear()
    first = asyncio.create_task(replica.unary(pb2.AnalyzeRequest(items=items(["w9"])).SerializeToString(), allowed()))
    await engine.hold()
    message = pb2.StreamAnalyzeRequest(items=items([f"w{number}" for number in range(5)])).SerializeToString()
    responses: Any = replica.calls.stream(STREAM, feed([message]), allowed())
    reading = asyncio.create_task(anext(responses))
    await until(lambda: waiting() == 5)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    await responses.aclose()
    await until(lambda: not waiting())
    engine.gate.set()
    assert (await first).answers[0].HasField("result")
    assert replica.service.stats().requests_running == 0


async def test_a_draining_service_ends_streams_with_a_status(replica: Replica) -> None:
    ended = asyncio.Event()

    async def messages() -> AsyncIterator[bytes]:
        yield pb2.StreamAnalyzeRequest(items=items(["w1"])).SerializeToString()
        await ended.wait()

    context = allowed()
    responses: Any = replica.calls.stream(STREAM, messages(), context)
    assert (await anext(responses)).SerializeToString()
    replica.service.drain()
    assert [one.SerializeToString() async for one in responses] == [b""]
    assert (context.code, context.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
