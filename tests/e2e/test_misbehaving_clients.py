"""What a real server takes for misbehavior, and what not. tests/reliability has clients that misbehave."""

from __future__ import annotations

import http.client
from dataclasses import dataclass
from pathlib import Path

import pytest
from polyhead.v1 import inference_service_pb2 as pb2
from polyhead.v1 import item_pb2

from bench.harness.servers import free_port
from tests.support.http2_client import Http2Client, frame

from .conftest import Server, Start

pytestmark = pytest.mark.model

STREAM = "polyhead.v1.InferenceService/StreamAnalyze"


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


def test_incomplete_requests_within_the_limit_are_waited_for(patient: Patient) -> None:
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
