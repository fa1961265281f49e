"""Connections of the HTTP listener: bounded in headers, bodies, time and number."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from pathlib import Path
from typing import Any

import pytest
from polyhead_server.errors import StartupError
from polyhead_server.http import calls, exchange, listener
from polyhead_server.http.exchange import Exchange, Response, exchange_of
from polyhead_server.http.listener import HttpListener

from tests.support.certificates import Authority

from .conftest import HttpServer

pytestmark = pytest.mark.timeout(60)


async def _app(scope: Any, receive: Any, send: Any) -> None:
    pass


async def _answering_app(scope: Any, receive: Any, send: Any) -> None:
    await Response(status=204).send(Exchange(scope, receive, send))


async def connect(server: HttpServer) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, port = server.address.split(":")
    return await asyncio.open_connection(host, int(port))


async def until_closed(reader: asyncio.StreamReader) -> bytes:
    async with asyncio.timeout(10):
        return await reader.read()


@pytest.mark.parametrize("sent", [b"", b"POST /embed HTTP/1.1\r\nhost:"])
async def test_connection_without_a_request_is_closed(
    running: HttpServer, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr(listener, "_HEADER_TIMEOUT_S", 0.1)
    reader, writer = await connect(running)
    writer.write(sent)
    assert await until_closed(reader) == b""
    writer.close()


async def test_endless_headers_close_the_connection(running: HttpServer) -> None:
    reader, writer = await connect(running)
    writer.write(b"GET /health HTTP/1.1\r\n" + b"x-a: " + b"y" * 50_000)
    assert await until_closed(reader) == b""
    writer.close()


async def test_body_that_does_not_come_is_answered(running: HttpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "BODY_TIMEOUT_S", 0.1)
    reader, writer = await connect(running)
    writer.write(b"POST /v1/analyze HTTP/1.1\r\nhost: x\r\ncontent-length: 50\r\n\r\n{")
    async with asyncio.timeout(10):
        assert b"408" in await reader.readline()
    writer.close()


async def test_body_is_bounded_without_a_declared_length(running: HttpServer) -> None:
    reader, writer = await connect(running)
    writer.write(b"POST /v1/analyze HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
    writer.write(b"ffff\r\n" + b"x" * 0xFFFF + b"\r\nffff\r\n" + b"x" * 0xFFFF + b"\r\n")
    async with asyncio.timeout(10):
        assert b"413" in await reader.readline()
    writer.close()


async def test_bytes_that_are_no_http_are_answered_400(running: HttpServer) -> None:
    reader, writer = await connect(running)
    writer.write(b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n")
    assert b"400" in await until_closed(reader)
    writer.close()


async def test_keep_alive_serves_several_calls(running: HttpServer) -> None:
    reader, writer = await connect(running)
    for _ in range(3):
        writer.write(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
        async with asyncio.timeout(10):
            assert b"200" in await reader.readuntil(b"\r\n\r\n")
    writer.close()


@pytest.mark.parametrize("count", [1, 16])
async def test_requests_that_come_together_are_answered_in_order(running: HttpServer, count: int) -> None:
    reader, writer = await connect(running)
    paths = [b"/health", b"/v1/none"] * count
    writer.write(b"".join(b"GET %s HTTP/1.1\r\nhost: x\r\n\r\n" % path for path in paths[: count + 1]))
    for path in paths[: count + 1]:
        async with asyncio.timeout(10):
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].split()[0])
            await reader.readexactly(length)
        assert head.split()[1] == (b"200" if path == b"/health" else b"404")
    writer.close()


@pytest.mark.parametrize(
    "request_",
    [b"GET /x HTTP/1.1\r\n\r\n", b"GET /x HTTP/1.1\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n"],
    ids=["plain", "upgrade"],
)
async def test_endless_requests_close_the_connection(running: HttpServer, request_: bytes) -> None:
    reader, writer = await connect(running)
    writer.write(request_ * 20_000)
    with contextlib.suppress(ConnectionError):
        assert (await until_closed(reader)).count(b"HTTP/1.1 ") <= 18
    writer.close()


@pytest.mark.parametrize("sent", [b"x: " + b"y" * 100 + b"\r\n", b"y" * 100], ids=["many trailers", "one trailer"])
async def test_endless_trailers_close_the_connection(running: HttpServer, sent: bytes) -> None:
    reader, writer = await connect(running)
    writer.write(b"POST /v1/analyze HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n0\r\nx: ")
    writer.write(sent * 50_000)
    with contextlib.suppress(ConnectionError):
        assert await until_closed(reader) == b""
    writer.close()


async def test_trailers_are_ignored(running: HttpServer) -> None:
    reader, writer = await connect(running)
    writer.write(b"POST /v1/analyze HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
    writer.write(b'c\r\n{"text":"w1"\r\n1\r\n}\r\n0\r\nx-a: b\r\n\r\n')
    async with asyncio.timeout(10):
        assert b"200" in await reader.readline()
    writer.close()


async def test_rest_of_a_refused_body_is_not_awaited_for_ever(
    running: HttpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "_DISCARD_TIMEOUT_S", 0.2)
    reader, writer = await connect(running)
    writer.write(b"POST /none HTTP/1.1\r\nhost: x\r\ncontent-length: 10000000\r\n\r\nx")
    assert b"404" in await until_closed(reader)
    writer.close()


async def test_connection_of_a_refused_body_serves_the_next_call(running: HttpServer) -> None:
    reader, writer = await connect(running)
    for _ in range(2):
        writer.write(b"POST /none HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\r\na")
        async with asyncio.timeout(10):
            head = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].split()[0]))
        assert b"404" in head
        writer.write(b"bc")
    writer.close()


def contexts(folder: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Returns the contexts of a server and of a client that trusts it."""
    authority = Authority(folder)
    files = authority.issue("server")
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(files.cert, files.key)
    return server, ssl.create_default_context(cafile=authority.cert)


encrypted = pytest.mark.parametrize("secure", [False, True], ids=["plain", "TLS"])


@encrypted
async def test_unread_response_ends_the_connection(
    secure: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "_UNREAD_TIMEOUT_S", 0.2)
    ended = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        try:
            await Response(b"x" * 2**24).send(exchange_of(scope, receive, send))
        finally:
            ended.set()

    server, client = contexts(tmp_path) if secure else (None, None)
    http = HttpListener(app, server, max_connections=3)
    host, port = (await http.listen("127.0.0.1:0", shares_port=False)).split(":")
    reader, writer = await asyncio.open_connection(host, int(port), ssl=client)
    writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
    # The stream reads ahead no more than it has room for.
    async with asyncio.timeout(20):
        await ended.wait()
    with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
        await reader.readexactly(2**24)
    writer.close()
    # The control: a client that reads gets all of it.
    reader, writer = await asyncio.open_connection(host, int(port), ssl=client)
    writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
    async with asyncio.timeout(20):
        await reader.readuntil(b"\r\n\r\n")
        assert len(await reader.readexactly(2**24)) == 2**24
    writer.close()
    await http.close(1)


async def test_calls_beyond_the_number_of_connections_are_refused() -> None:
    http = HttpListener(_answering_app, None, max_connections=2)
    host, port = (await http.listen("127.0.0.1:0", shares_port=False)).split(":")
    connections = [await asyncio.open_connection(host, int(port)) for _ in range(3)]

    async def status(number: int) -> bytes:
        reader, writer = connections[number]
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        async with asyncio.timeout(10):
            return (await reader.readuntil(b"\r\n\r\n")).split()[1]

    # The third one is there, and those that came before are served.
    assert [await status(number) for number in (0, 1, 2, 0, 1)] == [b"204", b"204", b"503", b"204", b"204"]
    for _, writer in connections:
        writer.close()
    await http.close(1)


async def test_connections_beyond_twice_the_number_are_closed() -> None:
    http = HttpListener(_answering_app, None, max_connections=1)
    host, port = (await http.listen("127.0.0.1:0", shares_port=False)).split(":")
    connections = [await asyncio.open_connection(host, int(port)) for _ in range(3)]
    with contextlib.suppress(ConnectionError):
        assert await until_closed(connections[2][0]) == b""
    for _, writer in connections:
        writer.close()
    await http.close(1)


async def test_address_that_is_taken_is_an_error(running: HttpServer) -> None:
    with pytest.raises(StartupError, match="is another server running there"):
        await HttpListener(_app, None, max_connections=1).listen(running.address, shares_port=False)


async def test_unix_socket_in_a_missing_directory_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="No such file"):
        await HttpListener(_app, None, max_connections=1).listen(f"unix:{tmp_path}/none/x.sock", shares_port=False)


async def test_unix_socket_is_private(tmp_path: Path) -> None:
    http = HttpListener(_app, None, max_connections=1)
    path = tmp_path / "http.sock"
    assert await http.listen(f"unix:{path}", shares_port=False) == f"unix:{path}"
    assert path.stat().st_mode & 0o777 == 0o600
    await http.close(1)


@encrypted
async def test_calls_after_an_unread_response_are_answered_in_order(secure: bool, tmp_path: Path) -> None:
    started: list[str] = []
    may_end = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        started.append(scope["path"])
        if scope["path"] == "/slow":
            await may_end.wait()
        body = b"x" * 2**24 if scope["path"] == "/large" else scope["path"].encode()
        await Response(body).send(exchange_of(scope, receive, send))

    server, client = contexts(tmp_path) if secure else (None, None)
    http = HttpListener(app, server, max_connections=2)
    host, port = (await http.listen("127.0.0.1:0", shares_port=False)).split(":")
    reader, writer = await asyncio.open_connection(host, int(port), ssl=client)

    async def body() -> bytes:
        async with asyncio.timeout(20):
            head = await reader.readuntil(b"\r\n\r\n")
            return await reader.readexactly(int(head.partition(b"content-length: ")[2].split()[0]))

    writer.write(b"GET /large HTTP/1.1\r\nhost: x\r\n\r\n")
    async with asyncio.timeout(20):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\nGET /fast HTTP/1.1\r\nhost: x\r\n\r\n")
        await writer.drain()
        await reader.readexactly(2**24)
        while "/slow" not in started:
            await asyncio.sleep(0)
    for _ in range(100):
        await asyncio.sleep(0)
    assert started == ["/large", "/slow"]
    may_end.set()
    assert [await body(), await body()] == [b"/slow", b"/fast"]
    writer.close()
    await http.close(1)
