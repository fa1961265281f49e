"""OpenAI's embeddings API."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import pytest
from polyhead_server.errors import OverloadedError

from tests.support.fake_engine import embedding_of

from .conftest import HttpServer

pytestmark = pytest.mark.timeout(60)


async def test_embeddings_come_in_order_with_their_usage(running: HttpServer) -> None:
    reply = await running.post("/v1/embeddings", {"model": "fake", "input": ["w1", "w2 w3"]})
    assert [one["embedding"] for one in reply.json["data"]] == [embedding_of("w1"), embedding_of("w2 w3")]
    assert [one["index"] for one in reply.json["data"]] == [0, 1]
    assert reply.json["usage"] == {"prompt_tokens": 7, "total_tokens": 7}
    assert reply.json["model"] == "fake"


async def test_base64_holds_the_same_numbers(running: HttpServer) -> None:
    reply = await running.post("/v1/embeddings", {"input": "w1", "encoding_format": "base64"})
    values = np.frombuffer(base64.b64decode(reply.json["data"][0]["embedding"]), "<f4")
    assert values.tolist() == embedding_of("w1")


async def test_null_is_a_missing_field(running: HttpServer) -> None:
    plain = await running.post("/v1/embeddings", {"input": "w1"})
    fields = dict.fromkeys(("model", "encoding_format", "dimensions", "user", "truncation", "prompt_name"))
    assert (await running.post("/v1/embeddings", {"input": "w1", **fields})).json == plain.json
    for field in ("model", "encoding_format"):
        assert (await running.post("/v1/embeddings", {"input": "w1", field: []})).status == 400


async def test_2048_inputs_are_one_request(running: HttpServer) -> None:
    texts = [f"w{number % 200}" for number in range(2048)]
    reply = await running.post("/v1/embeddings", {"input": texts})
    assert [one["embedding"] for one in reply.json["data"]] == [embedding_of(text) for text in texts]
    assert (await running.post("/v1/embeddings", {"input": [*texts, "w1"]})).status == 400


async def test_empty_text_is_embedded(running: HttpServer) -> None:
    assert (await running.post("/v1/embeddings", {"input": ""})).status == 200


async def test_prompt_is_put_before_each_input(running: HttpServer) -> None:
    reply = await running.post("/v1/embeddings", {"input": ["w1", "w2"], "prompt_name": "query"})
    assert [one["embedding"] for one in reply.json["data"]] == [embedding_of("w7 w1"), embedding_of("w7 w2")]
    assert reply.json["usage"]["prompt_tokens"] == 8
    refused = await running.post("/v1/embeddings", {"input": "w1", "prompt_name": "queries"})
    assert (refused.status, "its prompts are: passage, query" in refused.json["error"]["message"]) == (400, True)


async def test_truncation_is_told(running: HttpServer) -> None:
    reply = await running.post("/v1/embeddings", {"input": ["w1 " * 50, "w1"]})
    assert reply.headers["x-polyhead-truncated"] == "1"
    refused = await running.post("/v1/embeddings", {"input": ["w1", "w1 " * 50], "truncation": "error"})
    assert refused.status == 400
    assert refused.json["error"]["message"] == "input 1: the text has 52 tokens; the limit is 16"


async def test_models_lists_the_served_one(running: HttpServer) -> None:
    assert [one["id"] for one in (await running.get("/v1/models")).json["data"]] == ["fake"]
    assert (await running.get("/v1/models/fake")).json["id"] == "fake"
    assert (await running.get("/v1/models/other")).status == 404


BAD_REQUESTS: list[tuple[Any, int, str | None, str]] = [
    ({"input": []}, 400, "input", "empty list"),
    ({}, 400, "input", "must be a text or a list of texts"),
    ({"input": [1, 2]}, 400, "input", "check_embedding_ctx_length=False"),
    ({"input": [[1, 2]]}, 400, "input", "check_embedding_ctx_length=False"),
    ({"input": ["w1", None]}, 400, "input", "input 1 is null"),
    ({"input": "w1", "encoding_format": "int8"}, 400, "encoding_format", "float or base64"),
    ({"input": "w1", "dimensions": 3}, 400, None, "dimensions must be an integer from 1 to 2"),
    ({"input": "w1", "dimensions": 0}, 400, None, "dimensions must be an integer from 1 to 2"),
    ({"input": "w1", "top_p": 1}, 400, None, "field 'top_p' is not known"),
    ({"input": "w1", "model": "other"}, 404, None, "this server serves model 'fake'"),
    ({"input": "\ud800"}, 400, "input", "unpaired surrogate"),
    (b"{", 400, None, "not valid JSON"),
    (b"[]", 400, None, "not a JSON object"),
    (b"[" * 50_000, 400, None, "not valid JSON"),
    (b"x" * 100_001, 413, None, "more than 100000 bytes"),
]


async def test_bad_requests_are_refused_in_openais_form(running: HttpServer) -> None:
    for body, status, param, message in BAD_REQUESTS:
        reply = await running.post("/v1/embeddings", body)
        assert reply.status == status
        assert message in reply.json["error"]["message"]
        assert reply.json["error"]["param"] == param
        assert set(reply.json["error"]) == {"message", "type", "param", "code"}
        assert (await running.post("/v1/embeddings", {"input": "w1"})).status == 200


async def test_overload_tells_when_to_retry(running: HttpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    async def overloaded(*_: object) -> None:
        raise OverloadedError("the queue is full", 1.2345)

    monkeypatch.setattr(running.service, "answer", overloaded)
    reply = await running.post("/v1/embeddings", {"input": "w1"})
    assert (reply.status, reply.json["error"]["type"]) == (429, "rate_limit_error")
    assert (reply.headers["retry-after-ms"], reply.headers["retry-after"]) == ("1234", "2")


async def test_loading_server_is_unavailable(loading: HttpServer) -> None:
    reply = await loading.post("/v1/embeddings", {"input": "w1"})
    assert (reply.status, reply.headers["retry-after"]) == (503, "1")
