"""Compressed request bodies, as Triton's client sends them on request."""

from __future__ import annotations

import gzip
import json
import random
import zlib
from collections.abc import Callable

import pytest
from polyhead_server.http import decompression

from tests.support.fake_engine import embedding_of

from .conftest import HttpServer

pytestmark = pytest.mark.timeout(60)
PATH = "/v1/analyze"
BODY = json.dumps({"text": "w1", "tasks": ["embedding"]}).encode()


@pytest.mark.parametrize(
    ("encoding", "compress"), [("gzip", gzip.compress), ("deflate", zlib.compress), ("GZIP", gzip.compress)]
)
async def test_compressed_body_is_answered_as_the_plain_one(
    running: HttpServer, encoding: str, compress: Callable[[bytes], bytes]
) -> None:
    reply = await running.post(PATH, compress(BODY), {"content-encoding": encoding})
    assert reply.json["answers"] == (await running.post(PATH, BODY)).json["answers"]


async def test_gzip_of_several_members_is_one_body(running: HttpServer) -> None:
    body = gzip.compress(BODY[:10]) + gzip.compress(BODY[10:])
    assert (await running.post(PATH, body, {"content-encoding": "gzip"})).status == 200


@pytest.mark.parametrize(("members", "status"), [(500, 200), (2000, 400)])
async def test_members_of_gzip_are_bounded(running: HttpServer, members: int, status: int) -> None:
    body = gzip.compress(b"") * members + gzip.compress(BODY)
    reply = await running.post(PATH, body, {"content-encoding": "gzip"})
    assert reply.status == status
    if status == 400:
        assert reply.json["error"]["message"] == "the body has too many gzip members"


async def test_large_members_of_gzip_may_be_many(running: HttpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decompression, "_FREE_MEMBERS", 1)
    lines = (json.dumps({"text": random.Random(number).randbytes(600).hex()}) + "\n" for number in range(20))
    headers = {"content-type": "application/x-ndjson", "content-encoding": "gzip"}
    body = b"".join(gzip.compress(line.encode()) for line in lines)
    reply = await running.post(f"{PATH}?tasks=embedding", body, headers)
    assert len(reply.body.splitlines()) == 20
    assert b"MALFORMED" not in reply.body


async def test_stream_of_lines_may_be_compressed(running: HttpServer) -> None:
    lines = b"".join(b'"w%d"\n' % number for number in range(1, 41))
    headers = {"content-type": "application/x-ndjson", "content-encoding": "gzip"}
    reply = await running.post(f"{PATH}?tasks=embedding", gzip.compress(lines), headers)
    answers = [json.loads(line) for line in reply.body.splitlines()]
    assert [answer["embedding"] for answer in answers] == [embedding_of(f"w{number}") for number in range(1, 41)]


@pytest.mark.parametrize(
    ("body", "encoding", "problem"),
    [
        (BODY, "br", "content-encoding is 'br'; send gzip, deflate"),
        (BODY, "gzip, gzip", "content-encoding is 'gzip, gzip'"),
        (BODY, "gzip", "not valid gzip"),
        (gzip.compress(BODY)[:-9], "gzip", "ends within its gzip content"),
        (gzip.compress(BODY) + b"rest", "gzip", "not valid gzip"),
    ],
    ids=["other encoding", "two encodings", "not compressed", "cut off", "something after it"],
)
async def test_unreadable_body_is_refused(running: HttpServer, body: bytes, encoding: str, problem: str) -> None:
    reply = await running.post(PATH, body, {"content-encoding": encoding})
    assert reply.status == 400
    assert problem in reply.json["error"]["message"]


async def test_expanded_size_counts_against_the_limit(running: HttpServer) -> None:
    body = gzip.compress(json.dumps({"text": "w" * 50_000_000}).encode())
    assert len(body) < running.models.default.settings.max_message_bytes
    assert (await running.post(PATH, body, {"content-encoding": "gzip"})).status == 413
    assert (await running.post(PATH, BODY)).status == 200
    assert running.models.body_bytes == 0
