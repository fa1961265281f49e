"""The server inside of a replica, with a fake engine and without Ray."""

from __future__ import annotations

import gc
import logging
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from grpc_health.v1 import health_pb2
from polyhead.v1 import inference_service_pb2 as pb2
from polyhead_server.errors import NotReadyError
from polyhead_server.inference.model import Model
from polyhead_server.ray_serve import replica_server
from polyhead_server.ray_serve.autoscaling import QUEUED_TOKENS, UTILIZATION
from polyhead_server.ray_serve.replica_server import ReplicaServer
from polyhead_server.settings import Settings

from tests.support.fake_engine import FakeEngine, embedding_of
from tests.support.inference_server import embedding, items

from .test_handler_calls import ANALYZE, Context

CHECK = "/grpc.health.v1.Health/Check"


@pytest.fixture
async def server(
    model: Model, settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[ReplicaServer]:
    """A server before ``start``."""
    monkeypatch.setattr(replica_server, "load_model", lambda *_: model)
    interval, threshold = sys.getswitchinterval(), gc.get_threshold()
    server = ReplicaServer(settings(bundle=Path("fake")))
    yield server
    await server.close()
    sys.setswitchinterval(interval)
    gc.set_threshold(*threshold)
    logging.captureWarnings(capture=False)


async def health(server: ReplicaServer) -> int:
    response = await server.calls.unary(CHECK, b"", Context())
    return int(health_pb2.HealthCheckResponse.FromString(response.SerializeToString()).status)


async def test_a_replica_answers_once_its_model_is_loaded(server: ReplicaServer) -> None:
    request = pb2.AnalyzeRequest(items=items(["w1"])).SerializeToString()
    await server.calls.unary(ANALYZE, request, loading := Context())
    assert loading.reason == NotReadyError.reason
    assert await health(server) == health_pb2.HealthCheckResponse.NOT_SERVING
    await server.start()
    assert await health(server) == health_pb2.HealthCheckResponse.SERVING
    response = await server.calls.unary(ANALYZE, request, Context())
    (answer,) = pb2.AnalyzeResponse.FromString(response.SerializeToString()).answers
    assert embedding(answer) == embedding_of("w1")


async def test_the_http_api_is_served_from_the_same_pipeline(server: ReplicaServer) -> None:
    await server.start()
    app: Any = server.http_app()
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b'{"texts": ["w1"]}', "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/v1/analyze", "headers": [], "query_string": b""}
    await app(scope, receive, send)
    assert sent[0]["status"] == 200
    assert str(embedding_of("w1")).replace(" ", "").encode() in sent[1]["body"]


async def test_a_failed_pipeline_fails_the_health_check(server: ReplicaServer, monkeypatch: pytest.MonkeyPatch) -> None:
    await server.start()
    await server.check_health()
    monkeypatch.setattr(server.pipeline, "failure_reason", lambda: "a batch hangs")
    with pytest.raises(RuntimeError, match="the engine failed permanently: a batch hangs"):
        await server.check_health()
    assert await health(server) == health_pb2.HealthCheckResponse.NOT_SERVING


async def test_the_autoscaling_stats_are_numbers_of_the_pipeline(server: ReplicaServer, engine: FakeEngine) -> None:
    await server.start()
    before = server.autoscaling_stats()
    assert before[QUEUED_TOKENS] == 0
    await server.calls.unary(ANALYZE, pb2.AnalyzeRequest(items=items(["w1"] * 50)).SerializeToString(), Context())
    assert 0 < server.autoscaling_stats()[UTILIZATION] <= 1
    assert server.autoscaling_stats()[UTILIZATION] == 0


async def test_a_closed_replica_accepts_nothing(server: ReplicaServer) -> None:
    await server.start()
    await server.close()
    await server.calls.unary(ANALYZE, pb2.AnalyzeRequest(items=items(["w1"])).SerializeToString(), context := Context())
    assert context.reason == "DRAINING"
