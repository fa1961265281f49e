"""Clients that do not read, against a real server: shutdown waits for slow ones, and not for those that never read."""

from __future__ import annotations

import http.client
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from polyhead.v1 import inference_service_pb2 as pb2
from polyhead.v1 import item_pb2

from bench.harness.servers import free_port
from tests.support.http2_client import Http2Client, frame
from tests.support.polling import wait_until
from tests.support.worker_load import answered

from .conftest import START_S, Server, Start

pytestmark = pytest.mark.model

ANALYZE, STREAM = "polyhead.v1.InferenceService/Analyze", "polyhead.v1.InferenceService/StreamAnalyze"
# About 0.9 MB of answers, far more than a flow-control window, and no more items than a stream accepts at once.
MESSAGE = pb2.AnalyzeRequest(items=[item_pb2.Item()] * 512).SerializeToString()


@dataclass(frozen=True)
class Patient:
    """A server for tests that stop nothing.

    Attributes:
        server: Its process.
        http: HOST:PORT of its HTTP API.
    """

    server: Server
    http: str


@pytest.fixture(scope="module")
def patient(start: Start, demo_bundle: Path) -> Patient:
    http = f"127.0.0.1:{free_port()}"
    server = start(demo_bundle, "--http-listen", http)
    server.wait_until_serving()
    return Patient(server, http)


def port_of(server: Server) -> int:
    return int(server.target.rpartition(":")[2])


def start_response(client: Http2Client, method: str) -> int:
    """Sends a request and reads until its response has begun."""
    stream = client.open(method)
    client.send(stream, frame(MESSAGE))
    deadline = time.monotonic() + START_S
    while not client.outcome(stream).headers:
        assert time.monotonic() < deadline
        client.receive(0.1, acknowledge=True)
    return stream


def test_shutdown_waits_until_slow_clients_have_read_their_responses(start: Start, demo_bundle: Path) -> None:
    server = start(demo_bundle)
    server.wait_until_serving()
    with Http2Client(port_of(server)) as unary, Http2Client(port_of(server)) as streaming:
        clients = [(unary, start_response(unary, ANALYZE)), (streaming, start_response(streaming, STREAM))]
        server.process.send_signal(signal.SIGTERM)
        for client, stream in clients:
            outcome = client.finish(stream, bytes_per_s=1_000_000)
            assert outcome.status == 0
            assert len(outcome.data) > 750_000
    assert server.process.wait(START_S) == 0
    assert "cut off" not in server.log.read_text()


def test_responses_that_are_never_read_are_cut_off_and_counted(start: Start, demo_bundle: Path) -> None:
    server = start(demo_bundle, "--drain-timeout-s", "1")
    server.wait_until_serving()
    with Http2Client(port_of(server), window=0) as client:
        for method in (ANALYZE, STREAM):
            start_response(client, method)
        assert server.stop() == 1
    assert "cut off: 2 calls" in server.log.read_text()


def test_watches_that_are_never_read_delay_nothing(start: Start, demo_bundle: Path) -> None:
    server = start(demo_bundle)
    server.wait_until_serving()
    with Http2Client(port_of(server), window=0) as client:
        for _ in range(10):
            client.send(client.open("grpc.health.v1.Health/Watch"), frame(b""))
        client.receive(1.0)
        assert answered(server)
        began = time.monotonic()
        assert server.stop() == 0
    # Far below the drain timeout of 30 s.
    assert time.monotonic() - began < 15


def test_connection_with_too_many_incomplete_requests_is_closed(start: Start, demo_bundle: Path) -> None:
    server = start(demo_bundle, "--max-held-bytes", "16000000", "--max-message-bytes", "2000000")
    server.wait_until_serving()
    with Http2Client(port_of(server)) as client:
        # One byte is missing of each message.
        part = frame(bytes(1_900_000))[:-1]
        for _ in range(20):
            if not client.closed:
                client.send(client.open(STREAM), part, end=False)
        wait_until(lambda: client.closed or client.receive(0.1) < 0, "the connection is closed")
        assert answered(server)
    assert "bytes of incomplete messages" in server.log.read_text()


def test_incomplete_requests_within_the_limit_are_waited_for(patient: Patient) -> None:
    """Control."""
    server = patient.server
    with Http2Client(port_of(server)) as client:
        streams = [client.open(STREAM) for _ in range(20)]
        message = pb2.StreamAnalyzeRequest(items=[item_pb2.Item(text="a" * 10_000)] * 190).SerializeToString()
        for stream in streams:
            client.send(stream, frame(message)[:-1], end=False)
        # Several samples.
        client.receive(3.0)
        assert not client.closed
        client.send(streams[0], frame(message)[-1:])
        assert client.finish(streams[0]).status == 0
    assert "incomplete messages" not in server.log.read_text()


def test_large_bodies_of_http_are_not_taken_for_a_flood(patient: Patient) -> None:
    connection = http.client.HTTPConnection(patient.http, timeout=60)
    body = b'{"text": "%b"}' % (b"x" * 15_000_000)
    # More than the 128 MiB that a connection may hold.
    for _ in range(12):
        connection.request("POST", "/v1/analyze", body)
        response = connection.getresponse()
        assert b"embedding" in response.read()
    connection.close()
    assert "closing the connection" not in patient.server.log.read_text()
