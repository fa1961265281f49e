"""Unary calls of both clients against a real server."""

from __future__ import annotations

import math
import threading
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from polyhead.v1 import inference_service_pb2_grpc as service_grpc
from polyhead_client import (
    AccessDeniedError,
    DeadlineExceededError,
    Fingerprints,
    HeadInfo,
    InvalidRequestError,
    PolyheadError,
    ResourceExhaustedError,
    ServerError,
    UnavailableError,
)

from tests.support.both_clients import Face
from tests.support.fake_server import ERROR, FakeServicer, labels


def test_analyze_answers_in_order_with_ids(client: Face) -> None:
    answers = client.analyze(["one", ("mine", "two"), ERROR, "naïve 日本"])
    assert [answer.item_id for answer in answers] == ["0", "mine", "2", "3"]
    assert answers[2].error is not None
    assert labels([answers[0], answers[1], answers[3]]) == ["one", "two", "naïve 日本"]


def test_analyze_without_texts_makes_no_call(client: Face, servicer: FakeServicer) -> None:
    assert client.analyze([]) == []
    assert servicer.calls == []


def test_analyze_takes_several_calls_for_many_items(client: Face, servicer: FakeServicer) -> None:
    texts = [str(number) for number in range(2500)]
    assert labels(client.analyze(texts)) == texts
    assert [len(request.items) for request in servicer.requests] == [1024, 1024, 452]


def test_analyze_takes_several_calls_for_many_bytes(client: Face, servicer: FakeServicer) -> None:
    texts = [f"{number}" * 3_000_000 for number in range(3)]
    assert labels(client.analyze(texts)) == texts
    assert [len(request.items) for request in servicer.requests] == [1, 1, 1]


def test_analyze_returns_an_error_in_order_for_a_text_that_cannot_be_sent(client: Face) -> None:
    answers = client.analyze(["\ud800", "one", "\ud800", "two", "\ud800"])
    assert [answer.error is None for answer in answers] == [False, True, False, True, False]
    assert labels([answers[1], answers[3]]) == ["one", "two"]


def test_options_reach_the_server(client: Face, servicer: FakeServicer) -> None:
    expected = Fingerprints("00112233445566aa", {})
    requested: dict[str, Any] = {"truncation": "error", "include_timings": True, "expected_fingerprints": expected}
    client.analyze(["text"], tasks=["embedding"], encoding="binary", dimensions=64, prompt="query", **requested)
    (request,) = servicer.requests
    assert request.options.expected_fingerprints.embedding_space == "00112233445566aa"
    assert (list(request.tasks), request.options.truncation, request.options.include_timings) == ([1], 2, True)
    assert (request.embedding_options.encoding, request.embedding_options.dimensions) == (4, 64)
    assert request.options.prompt == "query"


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED])
def test_call_is_retried_while_the_server_is_unavailable(
    client: Face, servicer: FakeServicer, code: grpc.StatusCode
) -> None:
    servicer.unary_failures = [code, code]
    assert labels(client.analyze(["text"])) == ["text"]
    assert servicer.calls == ["Analyze"] * 3
    servicer.unary_failures = [code]
    assert client.info().model_id == "fake-0123456789ab"


CODES: dict[grpc.StatusCode, type[PolyheadError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequestError,
    grpc.StatusCode.UNIMPLEMENTED: InvalidRequestError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhaustedError,
    grpc.StatusCode.UNAUTHENTICATED: AccessDeniedError,
    grpc.StatusCode.PERMISSION_DENIED: AccessDeniedError,
    grpc.StatusCode.INTERNAL: ServerError,
    grpc.StatusCode.UNKNOWN: ServerError,
    grpc.StatusCode.ABORTED: UnavailableError,
}


def test_each_status_code_raises_its_error_class_and_is_not_retried(client: Face, servicer: FakeServicer) -> None:
    for code, kind in CODES.items():
        servicer.unary_failures = [code]
        with pytest.raises(kind, match="requested failure") as caught:
            client.analyze(["text"])
        assert (caught.value.code, caught.value.reason) == (code.name, "REQUESTED")
    assert servicer.calls == ["Analyze"] * len(CODES)


def test_server_that_stays_unavailable_raises_after_five_attempts(client: Face, servicer: FakeServicer) -> None:
    servicer.unary_failures = [grpc.StatusCode.UNAVAILABLE] * 10
    with pytest.raises(UnavailableError, match="requested failure"):
        client.info()
    assert len(servicer.calls) == 5


def test_unreachable_server_raises_unavailable(connect: Any) -> None:
    with pytest.raises(UnavailableError):
        connect("127.0.0.1:1", max_attempts=2).analyze(["text"])


def test_deadline_ends_the_call(client: Face, servicer: FakeServicer) -> None:
    servicer.gate.clear()
    with pytest.raises(DeadlineExceededError):
        client.analyze(["text"], deadline_s=0.2)


@pytest.mark.parametrize("deadline_s", [math.inf, 1e10, 1e9])
def test_infinite_deadline_ends_no_call(client: Face, deadline_s: float) -> None:
    assert labels(client.analyze(["unary"], deadline_s=deadline_s)) == ["unary"]
    assert labels(client.stream(["streamed"], deadline_s=deadline_s)) == ["streamed"]


def test_deadline_covers_all_calls_of_a_batch(client: Face, servicer: FakeServicer) -> None:
    with pytest.raises(DeadlineExceededError):
        client.analyze([str(number) for number in range(1025)], deadline_s=0)


def test_closed_client_rejects_a_call(client: Face) -> None:
    client.close()
    with pytest.raises(InvalidRequestError, match="closed"):
        client.analyze(["text"])


def test_client_with_wait_for_ready_waits_for_a_server_that_starts_later(connect: Any) -> None:
    with futures.ThreadPoolExecutor(1) as pool:
        server = grpc.server(pool)
        service_grpc.add_InferenceServiceServicer_to_server(FakeServicer(), server)
        port = server.add_insecure_port("127.0.0.1:0")
        models: list[Any] = []
        client = connect(f"127.0.0.1:{port}", wait_for_ready=True)
        thread = threading.Thread(target=lambda: models.append(client.info()))
        thread.start()
        server.start()
        thread.join(20)
        server.stop(None).wait()
    assert [model.model_id for model in models] == ["fake-0123456789ab"]


def test_info_describes_the_model(client: Face) -> None:
    model = client.info()
    assert model.heads == (
        HeadInfo("topic", "softmax", ("account", "billing"), 1.5, None),
        HeadInfo("mood", "sigmoid", ("bad", "good"), 1.0, 0.5),
    )
    assert (model.embedding.dimensions, model.embedding.pooling, model.embedding.normalized) == (3, "mean", True)
    assert (model.limits.max_tokens, model.limits.max_items_per_message) == (256, 1024)
    assert model.fingerprints.heads == {"topic": "0123456789abcdef", "mood": "fedcba9876543210"}
    assert (model.runtime.engine, model.runtime.fallback_reasons) == ("onnx", ("no cuda here",))
    assert (model.bundle_format_version, model.server_version) == (1, "0.2.0")


def test_target_may_be_a_unix_socket_a_name_or_an_address_list(connect: Any, tmp_path: Path) -> None:
    servicer = FakeServicer()
    with futures.ThreadPoolExecutor(64) as pool:
        server = grpc.server(pool)
        service_grpc.add_InferenceServiceServicer_to_server(servicer, server)
        health_pb2_grpc.add_HealthServicer_to_server(servicer.health, server)
        servicer.health.set("polyhead.v1.InferenceService", health_pb2.HealthCheckResponse.SERVING)
        port = server.add_insecure_port("localhost:0")
        server.add_insecure_port(f"unix:{tmp_path}/socket")
        server.start()
        for target in (f"unix:{tmp_path}/socket", f"dns:///localhost:{port}", f"ipv4:127.0.0.1:1,127.0.0.1:{port}"):
            assert labels(connect(target).analyze(["text"])) == ["text"]
        server.stop(None).wait()
