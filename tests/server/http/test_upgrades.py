"""Requests that ask for HTTP/2, as Java's HTTP client and ``curl --http2`` send them in plain text."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tests.support.fake_engine import embedding_of

from .conftest import HttpServer

pytestmark = pytest.mark.timeout(60)
UPGRADE = b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n"
BODY = json.dumps({"text": "w1", "tasks": ["embedding"]}).encode()
# Longer than the limit for headers.
LONG_BODY = BODY + b" " * 60_000


def post(body: bytes, headers: bytes = UPGRADE) -> bytes:
    return b"POST /v1/analyze HTTP/1.1\r\nhost: x\r\n%scontent-length: %d\r\n\r\n%s" % (headers, len(body), body)


def chunked(body: bytes) -> bytes:
    head = b"POST /v1/analyze HTTP/1.1\r\nhost: x\r\n%stransfer-encoding: chunked\r\n\r\n" % UPGRADE
    return head + b"5\r\n%s\r\n%x\r\n%s\r\n0\r\n\r\n" % (body[:5], len(body) - 5, body[5:])


async def answers(server: HttpServer, *parts: bytes, count: int = 1) -> list[Any]:
    """Sends the parts one after the other; returns the embedding of each response."""
    host, port = server.address.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    async with asyncio.timeout(20):
        for part in parts:
            writer.write(part)
            await writer.drain()
            # Each part arrives on its own.
            await asyncio.sleep(0.05)
        found = []
        for _ in range(count):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            assert head.startswith("HTTP/1.1 200 "), head + (await reader.read(300)).decode()
            size = next(int(line.partition(":")[2]) for line in head.splitlines() if line.startswith("content-length"))
            found.append(json.loads(await reader.readexactly(size))["answers"][0]["embedding"])
    writer.close()
    return found


@pytest.mark.parametrize("sent", [post(BODY), post(LONG_BODY), chunked(BODY)], ids=["short", "long", "chunked"])
async def test_body_is_read_however_it_is_split(running: HttpServer, sent: bytes) -> None:
    for cut in (1, 30, 150, 250, 10_000):
        assert await answers(running, sent[:cut], sent[cut:]) == [embedding_of("w1")], cut


@pytest.mark.parametrize("following", [UPGRADE, b""], ids=["again", "not again"])
async def test_connection_serves_further_calls(running: HttpServer, following: bytes) -> None:
    other = json.dumps({"text": "w2 w3", "tasks": ["embedding"]}).encode()
    expected = [embedding_of("w1"), embedding_of("w2 w3"), embedding_of("w1")]
    requests = [post(BODY), post(other, following), post(BODY)]
    assert await answers(running, *requests, count=3) == expected
    assert await answers(running, b"".join(requests), count=3) == expected


async def test_request_without_a_body_is_answered(running: HttpServer) -> None:
    host, port = running.address.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    for _ in range(2):
        writer.write(b"GET /health HTTP/1.1\r\nhost: x\r\n%s\r\n" % UPGRADE)
        async with asyncio.timeout(10):
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
    writer.close()
