"""The server process: how it starts, what it says of itself, how it counts, how it stops."""

from __future__ import annotations

import signal
import threading
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from polyhead_client import Answer, Client, UnavailableError
from prometheus_client.parser import text_string_to_metric_families

from bench.harness.servers import free_port

from .conftest import START_S, Server, Start

pytestmark = pytest.mark.model

NOT_SERVING, SERVING = health_pb2.HealthCheckResponse.NOT_SERVING, health_pb2.HealthCheckResponse.SERVING


@dataclass(frozen=True)
class Serving:
    """A server for tests that stop nothing.

    Attributes:
        server: Its process.
        statuses: What its health service said until it served.
        metrics_port: Port of its metrics.
    """

    server: Server
    statuses: list[int]
    metrics_port: int


@pytest.fixture(scope="module")
def serving(start: Start, demo_bundle: Path) -> Serving:
    port = free_port()
    server = start(demo_bundle, "--metrics-listen", f"127.0.0.1:{port}")
    return Serving(server, server.wait_until_serving(), port)


def uses_torch(server: Server) -> bool:
    """Whether a server has loaded PyTorch once it has answered a text."""
    with Client(server.target) as client:
        client.analyze(["one text"])
    return "libtorch" in Path(f"/proc/{server.process.pid}/maps").read_text()


def test_health_says_not_serving_until_the_model_is_ready(serving: Serving) -> None:
    assert serving.statuses == [NOT_SERVING, SERVING]


def test_onnx_engine_does_not_load_torch(serving: Serving) -> None:
    with Client(serving.server.target) as client:
        assert client.info().runtime.engine == "onnx"
    assert not uses_torch(serving.server)


def test_settings_come_from_the_environment(start: Start, demo_bundle: Path) -> None:
    server = start(demo_bundle, environment={"POLYHEAD_VARIANT": "fp32", "POLYHEAD_MAX_ITEMS_PER_MESSAGE": "3"})
    server.wait_until_serving()
    with Client(server.target) as client:
        info = client.info()
    assert (info.runtime.variant, info.limits.max_items_per_message) == ("fp32", 3)


def test_torch_answers_where_onnxruntime_cannot_be_used(start: Start, demo_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "onnxruntime.py").write_text("raise ImportError('broken installation')\n")
    server = start(demo_bundle, environment={"PYTHONPATH": str(tmp_path)})
    server.wait_until_serving()
    with Client(server.target) as client:
        runtime = client.info().runtime
        assert client.analyze(["one text"])[0].result is not None
    assert (runtime.engine, runtime.device) == ("torch", "cpu")
    assert runtime.fallback_reasons[0].endswith(": it is not installed")
    assert "broken installation" in server.log.read_text()
    # Control for the test above of a server that does not load it.
    assert uses_torch(server)


def test_reflection_names_our_service(serving: Serving) -> None:
    with grpc.insecure_channel(serving.server.target) as channel:
        requests = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
        (answer,) = stub.ServerReflectionInfo(requests, timeout=START_S)
    names = {service.name for service in answer.list_services_response.service}
    assert {"polyhead.v1.InferenceService", "grpc.health.v1.Health"} <= names


def scrape(port: int) -> dict[str, float]:
    """The server's metrics; that of the runtime has its engine in its name."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=START_S) as response:
        families = list(text_string_to_metric_families(response.read().decode()))
    samples = [sample for family in families for sample in family.samples]
    return {":".join([sample.name, *filter(None, [sample.labels.get("engine")])]): sample.value for sample in samples}


def test_three_tasks_run_the_backbone_once(serving: Serving) -> None:
    port = serving.metrics_port
    with Client(serving.server.target) as client:
        before = scrape(port)
        result = client.analyze(["one text"], tasks=["embedding", "classification", "sentiment"])[0].unwrap()
        assert all(part is not None for part in (result.embedding, result.classification, result.sentiment))
        after = scrape(port)
        assert after["polyhead_batch_size_count"] - before["polyhead_batch_size_count"] == 1
        assert after["polyhead_items_total"] - before["polyhead_items_total"] == 1
        list(client.classify(["one text"]))
        assert scrape(port)["polyhead_batch_size_count"] - after["polyhead_batch_size_count"] == 1
    assert after["polyhead_runtime_info:onnx"] == 1


def test_interrupt_ends_a_stream_after_its_last_answer(start: Start, demo_bundle: Path) -> None:
    server = start(demo_bundle)
    server.wait_until_serving()
    released = threading.Event()
    answers: list[Answer] = []

    def texts() -> Iterator[str]:
        for index in range(200):
            yield f"text number {index} " + "and some more words " * 10
        released.wait(START_S)

    with Client(server.target, max_attempts=1) as client:
        stream = client.stream(texts())
        answers.append(next(stream))
        server.process.send_signal(signal.SIGINT)
        with pytest.raises(UnavailableError):
            answers.extend(stream)
        released.set()
    assert server.process.wait(START_S) == 0
    assert all(answer.result is not None for answer in answers)
    assert [answer.item_id for answer in answers] == [str(index) for index in range(len(answers))]


def test_stopping_while_loading_is_quick(start: Start, demo_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "onnxruntime.py").write_text("import time; time.sleep(1000)\n")
    server = start(demo_bundle, environment={"PYTHONPATH": str(tmp_path)})
    with grpc.insecure_channel(server.target) as channel:
        grpc.channel_ready_future(channel).result(START_S)
    assert server.stop() == 0
