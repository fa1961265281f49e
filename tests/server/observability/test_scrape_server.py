"""The HTTP server of the metrics: answers scrapes, and bounds what its clients can occupy."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
from polyhead_server.errors import StartupError
from polyhead_server.observability.scrape_server import ScrapeServer, listen_for_scrapes
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

pytestmark = pytest.mark.timeout(30)

MAX_CONNECTIONS = 4
# Of the tests that wait for it; the others leave a busy machine its time.
TIMEOUT_S = 0.2
ends_connections = pytest.mark.parametrize("timeout_s", [TIMEOUT_S])
GET = b"GET /metrics HTTP/1.1\r\n\r\n"


@pytest.fixture
def registry() -> CollectorRegistry:
    registry = CollectorRegistry()
    Counter("calls", "Calls.", registry=registry).inc(3)
    return registry


@pytest.fixture
def timeout_s() -> float:
    return 20.0


@pytest.fixture
async def port(registry: CollectorRegistry, timeout_s: float) -> AsyncIterator[int]:
    listener = socket.create_server(("127.0.0.1", 0))
    server = ScrapeServer(registry, timeout_s, MAX_CONNECTIONS)
    running = asyncio.create_task(server.run(listener))
    yield listener.getsockname()[1]
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def send(port: int, request: bytes) -> asyncio.StreamReader:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    OPEN.append(writer)
    writer.write(request)
    return reader


OPEN: list[asyncio.StreamWriter] = []


@pytest.fixture(autouse=True)
async def _close() -> AsyncIterator[None]:
    yield
    for writer in OPEN:
        writer.transport.abort()
    OPEN.clear()


async def get(port: int, request: bytes = GET) -> tuple[str, dict[str, str], bytes]:
    """Returns the status line, the headers and the body of an answer, after which the server closes the connection."""
    head, _, body = (await (await send(port, request)).read()).partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    return status, dict(line.split(": ", 1) for line in lines), body


@pytest.mark.parametrize("path", ["/", "/metrics", "/metrics?name[]=calls_total"])
async def test_scrape_returns_the_metrics(port: int, path: str) -> None:
    status, headers, body = await get(port, f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    assert status == "HTTP/1.1 200 OK"
    assert headers["Content-Type"].startswith("text/plain")
    assert int(headers["Content-Length"]) == len(body)
    families = {family.name: family for family in text_string_to_metric_families(body.decode())}
    assert families["calls"].samples[0].value == 3


async def test_prometheus_gets_the_format_and_the_compression_that_it_accepts(port: int) -> None:
    accept = b"Accept: application/openmetrics-text;version=1.0.0\r\nAccept-Encoding: gzip\r\n"
    _, headers, body = await get(port, b"GET /metrics HTTP/1.1\r\n" + accept + b"\r\n")
    assert headers["Content-Encoding"] == "gzip"
    assert headers["Content-Type"].startswith("application/openmetrics-text")
    (family,) = parse_openmetrics(gzip.decompress(body).decode())  # type: ignore[no-untyped-call]
    assert family.name == "calls"


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"POST /metrics HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello", "405 Method Not Allowed"),
        (b"GET /../../etc/passwd HTTP/1.1\r\n\r\n", "404 Not Found"),
        (b"\xff\x00\r\n\r\n", "405 Method Not Allowed"),
        (b"HEAD /metrics HTTP/1.1\r\n\r\n", "200 OK"),
    ],
)
async def test_other_requests_get_a_small_answer(port: int, request_: bytes, status: str) -> None:
    found, _, body = await get(port, request_)
    assert found == f"HTTP/1.1 {status}"
    assert len(body) < 100


@ends_connections
@pytest.mark.parametrize("request_", [b"", b"GET /metrics HTTP/1.1\r\nX: ", b"GET /" + b"a" * 5000])
async def test_connection_that_does_not_send_its_request_is_closed(port: int, request_: bytes) -> None:
    reader = await send(port, request_)
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await reader.readexactly(1)


@ends_connections
async def test_request_that_drips_is_closed(port: int) -> None:
    """A timeout for each byte would let it live forever."""
    reader = await send(port, b"GET ")
    closed = asyncio.create_task(reader.read())

    async def drip() -> None:
        while not closed.done():
            OPEN[-1].write(b"x")
            await asyncio.sleep(TIMEOUT_S / 10)

    await asyncio.gather(drip(), closed, return_exceptions=True)
    assert closed.done()


async def test_endless_header_is_not_kept(port: int) -> None:
    reader = await send(port, b"GET / HTTP/1.1\r\nX: " + b"a" * 10_000_000)
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await reader.readexactly(1)


async def test_many_connections_cannot_lock_out_a_scrape(port: int) -> None:
    readers = [await send(port, b"GET /metrics HTTP/1.1\r\nX: ") for _ in range(10 * MAX_CONNECTIONS)]
    assert (await get(port))[0] == "HTTP/1.1 200 OK"
    # The oldest were closed for the newer ones, before their time was over.
    closed = [asyncio.create_task(_read(reader)) for reader in readers[: 9 * MAX_CONNECTIONS]]
    await asyncio.wait(closed, timeout=10)
    assert all(task.done() for task in closed)


async def _read(reader: asyncio.StreamReader) -> Any:
    try:
        return await reader.read()
    except ConnectionError:
        return b""


@ends_connections
async def test_answer_that_nobody_reads_is_given_up(registry: CollectorRegistry, port: int) -> None:
    # More than the buffers of both ends hold.
    for number in range(1000):
        Counter(f"filler_{number}", "x" * 20_000, registry=registry)
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", port))
        client.sendall(GET)
        await asyncio.sleep(2 * TIMEOUT_S)
        received = await asyncio.to_thread(_receive, client)
    assert 0 < received < 20_000_000


def _receive(client: socket.socket) -> int:
    received = 0
    with contextlib.suppress(ConnectionError):
        while data := client.recv(65536):
            received += len(data)
    return received


def test_address_in_use_is_reported(registry: CollectorRegistry) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(StartupError, match=r"cannot listen on 127\.0\.0\.1:"),
    ):
        listen_for_scrapes(f"127.0.0.1:{taken.getsockname()[1]}", registry)
    with pytest.raises(StartupError, match="is not HOST:PORT"):
        listen_for_scrapes("9090", registry)
