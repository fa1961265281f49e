"""Connections of the HTTP listener: bounded in headers, bodies, time and number."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from polyhead_server.errors import StartupError
from polyhead_server.http import calls, listener
from polyhead_server.http.exchange import Exchange, Response
from polyhead_server.http.listener import HttpListener

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


async def test_calls_beyond_the_number_of_connections_are_refused() -> None:
    http = HttpListener(_answering_app, None, max_connections=2)
    host, port = (await http.listen("127.0.0.1:0", shares_port=False)).split(":")
    statuses = []
    writers = []
    for _ in range(3):
        reader, writer = await asyncio.open_connection(host, int(port))
        writers.append(writer)
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        async with asyncio.timeout(10):
            statuses.append((await reader.readuntil(b"\r\n\r\n")).split()[1])
    assert statuses == [b"204", b"204", b"503"]
    for writer in writers:
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
