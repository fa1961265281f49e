"""``/v1/analyze``: JSON documents and streams of JSON lines."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import http.client
import json
from typing import Any

import numpy as np
import polyhead_bundle as bundle
import pytest
from polyhead_server.http.analyze_answer import record
from polyhead_server.inference.model import Model
from polyhead_server.inference.novelty import Novelty
from polyhead_server.inference.pipeline import Pipeline
from polyhead_server.inference.types import ModelOutput, RequestOptions, Result, Timings, TokenizedText
from polyhead_server.settings import Settings

from tests.support.fake_engine import FakeEngine, embedding_of
from tests.support.polling import until
from tests.support.small_bundle import ABSTENTION

from .conftest import HttpServer, Reply

pytestmark = pytest.mark.timeout(60)
LINES = {"content-type": "application/x-ndjson"}


def lines(reply: Reply) -> list[Any]:
    return [json.loads(line) for line in reply.body.splitlines()]


async def test_every_task_is_answered_at_once(running: HttpServer) -> None:
    reply = await running.post("/v1/analyze", {"texts": ["w1", "w2 w3"], "timings": True})
    first, second = reply.json["answers"]
    assert (first["embedding"], second["embedding"]) == (embedding_of("w1"), embedding_of("w2 w3"))
    assert [one["label"] for one in first["classification"]["scores"]] == ["a", "b", "c"]
    assert first["sentiment"]["label"] == "positive"
    assert first["truncation"]["tokens_used"] == 3
    assert first["timings"]["total_s"] > 0
    assert reply.json["model"] == "fake-" + "d" * 12
    assert reply.json["fingerprints"]["heads"] == {"topic": "t" * 16, "sentiment": "s" * 16}


async def test_bad_item_gets_an_error_and_its_neighbours_their_answers(running: HttpServer) -> None:
    items = [{"id": "x", "text": "w1"}, {"id": 5, "text": "w2"}, {"text": None}, "w3", {"id": [], "text": "w4"}]
    reply = await running.post("/v1/analyze", {"items": items, "tasks": ["embedding"]})
    answers = reply.json["answers"]
    assert [one["id"] for one in answers] == ["x", "5", "", "", ""]
    assert [one.get("embedding") for one in answers] == [embedding_of("w1"), embedding_of("w2"), None, None, None]
    assert [one["error"]["message"] for one in answers[2:]] == [
        "text is null, not a text",
        'the item is a text, not an object {"id": ..., "text": ...}',
        "id is an array, not a text",
    ]


async def test_prompt_is_put_before_each_text(running: HttpServer) -> None:
    body = {"texts": ["w1", "w2"], "prompt": "query", "tasks": ["embedding"]}
    answers = (await running.post("/v1/analyze", body)).json["answers"]
    assert [one["embedding"] for one in answers] == [embedding_of("w7 w1"), embedding_of("w7 w2")]
    answers = (await running.post("/v1/analyze", body | {"prompt": "queries"})).json["answers"]
    assert [one["error"]["reason"] for one in answers] == ["UNKNOWN_PROMPT"] * 2
    reply = await running.post("/v1/analyze?prompt=query&tasks=embedding", b'"w1"\n', headers=LINES)
    assert [one["embedding"] for one in lines(reply)] == [embedding_of("w7 w1")]
    assert (await running.get("/v1/info")).json["prompts"] == {"passage": "w8 w9 ", "query": "w7 "}


async def test_encodings_and_dimensions(running: HttpServer) -> None:
    body = {"text": "w1", "tasks": ["embedding"], "embedding": {"encoding": "float16", "dimensions": 1}}
    (answer,) = (await running.post("/v1/analyze", body)).json["answers"]
    assert answer["embedding"]["dimensions"] == 1
    values = np.frombuffer(base64.b64decode(answer["embedding"]["values"]), "<f2")
    assert values.tolist() == embedding_of("w1")[:1]


BAD_DOCUMENTS: list[tuple[Any, str]] = [
    ({}, "send one of text, texts and items"),
    ({"text": "w1", "texts": ["w1"]}, "send one of text, texts and items"),
    ({"texts": []}, "empty list"),
    ({"texts": "w1"}, "texts must be a list"),
    ({"texts": ["w1"] * 9}, "9 texts; at most 8"),
    ({"text": "w1", "tasks": "embedding"}, "tasks must be a list"),
    ({"text": "w1", "tasks": ["rerank"]}, "tasks must be one of embedding, classification, sentiment"),
    ({"text": "w1", "truncation": "left"}, "truncate, error, window"),
    ({"text": "w1", "timings": 1}, "timings must be true or false"),
    ({"text": "w1", "embedding": {"encoding": "float64"}}, "float32, float16, int8, binary"),
    ({"text": "w1", "embedding": {"dimensions": 3}}, "from 1 to 2"),
    ({"text": "w1", "expected_fingerprints": "x"}, "expected_fingerprints must be"),
    ({"text": "w1", "expected_fingerprints": {"embeding_space": "0"}}, "field 'embeding_space' is not known"),
    ({"text": "w1", "temperature": 0}, "field 'temperature' is not known"),
]


async def test_invalid_documents_are_refused(running: HttpServer) -> None:
    for body, message in BAD_DOCUMENTS:
        reply = await running.post("/v1/analyze", body)
        assert reply.status == 400
        assert message in reply.json["error"]["message"]


async def test_other_model_than_expected_is_refused(running: HttpServer) -> None:
    body = {"text": "w1", "expected_fingerprints": {"embedding_space": "0" * 16}}
    (answer,) = (await running.post("/v1/analyze", body)).json["answers"]
    assert answer["error"]["reason"] == "FINGERPRINT_MISMATCH"


async def test_lines_are_answered_by_lines_in_order(running: HttpServer) -> None:
    body = b"".join(json.dumps({"id": f"i{n}", "text": f"w{n % 200}"}).encode() + b"\n" for n in range(500))
    answers = lines(await running.post("/v1/analyze?tasks=embedding", body, LINES))
    assert [one["id"] for one in answers] == [f"i{n}" for n in range(500)]
    assert [one["embedding"] for one in answers] == [embedding_of(f"w{n % 200}") for n in range(500)]


async def test_broken_line_gets_an_error_and_the_stream_goes_on(running: HttpServer) -> None:
    body = b'{"id": "a", "text": "w1"}\n\nnot json\n{"text": 5}\n"w2"\r\n' + b"[" * 50_000 + b'\n{"text": "w3"}'
    answers = lines(await running.post("/v1/analyze?tasks=embedding", body, LINES))
    assert [one.get("embedding") for one in answers] == [
        embedding_of("w1"), None, None, embedding_of("w2"), None, embedding_of("w3")
    ]  # fmt: skip
    assert "line 3 is not valid JSON" in answers[1]["error"]["message"]
    assert answers[5]["id"] == "6"


async def test_line_beyond_the_limit_ends_the_stream_with_an_error(running: HttpServer) -> None:
    answers = lines(await running.post("/v1/analyze", b'"w1"\n"' + b"x" * 200_000, LINES))
    error = answers[-1]["error"]
    assert (error["code"], error["reason"]) == ("RESOURCE_EXHAUSTED", "MESSAGE_TOO_LARGE")


@pytest.mark.parametrize("query", ["tasks=rerank", "dimensions=3", "dimensions=x", "timings=1", "modell=fake"])
async def test_invalid_option_of_a_stream_is_refused(running: HttpServer, query: str) -> None:
    reply = await running.post(f"/v1/analyze?{query}", b'"w1"\n', LINES)
    assert reply.status == 400


async def test_stream_is_refused_while_the_server_drains(running: HttpServer) -> None:
    running.service.drain()
    reply = await running.post("/v1/analyze", b'"w1"\n', LINES)
    assert (reply.status, reply.json["error"]["reason"]) == (503, "DRAINING")
    assert "retry-after" in reply.headers


async def test_invalid_deadline_of_a_stream_is_refused(running: HttpServer) -> None:
    reply = await running.post("/v1/analyze", b'"w1"\n', {**LINES, "x-request-timeout-s": "soon"})
    assert (reply.status, reply.json["error"]["reason"]) == (400, "INVALID_PARAMETER")


async def test_answers_come_while_the_body_still_comes(running: HttpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    # Streams of gRPC end at this age, because their connection does. That of HTTP does not.
    monkeypatch.setattr(Settings, "stream_age_s", lambda _: 1e-6)
    host, port = running.address.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(
        b"POST /v1/analyze HTTP/1.1\r\nhost: x\r\ncontent-type: application/x-ndjson\r\n"
        b"transfer-encoding: chunked\r\n\r\n"
    )
    for text in ("w1", "w2"):
        line = json.dumps({"id": text, "text": text}).encode() + b"\n"
        writer.write(b"%x\r\n%b\r\n" % (len(line), line))
        async with asyncio.timeout(10):
            while f'"id":"{text}"'.encode() not in await reader.readline():
                pass
    writer.write(b"0\r\n\r\n")
    async with asyncio.timeout(10):
        while await reader.readline() != b"0\r\n":
            pass
    writer.close()


async def test_stream_that_fails_is_cut_off_and_logged(
    running: HttpServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def record(*_: Any) -> Any:
        raise ValueError("a defect")

    monkeypatch.setattr("polyhead_server.http.analyze_lines.record", record)
    with pytest.raises(http.client.IncompleteRead):
        await running.post("/v1/analyze", b'"w1"\n', LINES)
    assert "an HTTP stream failed" in caplog.text


async def test_drain_ends_a_stream_after_its_answers(running: HttpServer, engine: FakeEngine) -> None:
    host, port = running.address.split(":")
    engine.gate.clear()
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(
        b"POST /v1/analyze?tasks=embedding HTTP/1.1\r\nhost: x\r\ncontent-type: application/x-ndjson\r\n"
        b'transfer-encoding: chunked\r\n\r\n5\r\n"w1"\n\r\n'
    )
    await engine.hold()
    running.service.drain()
    engine.gate.set()
    async with asyncio.timeout(10):
        body = await reader.readuntil(b"0\r\n\r\n")
    assert b'"embedding":[11.0,3.0]' in body
    assert body.index(b"DRAINING") > body.index(b"embedding")
    writer.close()


async def test_lost_connection_withdraws_the_texts(running: HttpServer, engine: FakeEngine) -> None:
    pipeline = running.service.pipeline
    assert isinstance(pipeline, Pipeline)
    host, port = running.address.split(":")
    engine.gate.clear()
    held = asyncio.ensure_future(running.post("/v1/analyze", {"text": "w1"}))
    await engine.hold()
    _, writer = await asyncio.open_connection(host, int(port))
    body = json.dumps({"texts": ["w2", "w3"]}).encode()
    writer.write(b"POST /v1/analyze HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
    await until(lambda: pipeline.scheduler.accounting.waiting_items >= 2)
    writer.close()
    await until(lambda: not pipeline.scheduler.accounting.waiting_items)
    engine.gate.set()
    assert (await held).status == 200


async def test_info_describes_the_model(running: HttpServer) -> None:
    info = (await running.get("/v1/info")).json
    assert [head["name"] for head in info["heads"]] == ["topic", "sentiment"]
    assert info["limits"]["max_items_per_message"] == 8


async def test_novelty_and_abstention_are_in_the_answers_of_a_model_that_has_them(
    running: HttpServer, model: Model
) -> None:
    reply = await running.post("/v1/analyze", {"texts": ["w1"], "novelty": True})
    assert reply.json["answers"][0]["error"]["reason"] == "NOVELTY_NOT_AVAILABLE"
    info = (await running.get("/v1/info")).json
    assert (info["has_novelty"], info["heads"][0]["abstention"]) == (False, None)
    assert "abstained" not in (await running.post("/v1/analyze", {"text": "w1"})).json["answers"][0]["classification"]


def test_record_states_confidence_abstention_and_novelty(model: Model) -> None:
    topic = dataclasses.replace(model.source.manifest.heads[0], abstention=ABSTENTION)
    manifest = dataclasses.replace(model.source.manifest, heads=(topic, model.source.manifest.heads[1]))
    novelty = Novelty(bundle.Novelty(1, (), 1.0, (0.0, 4.0)), np.zeros((1, 2), np.float16))
    changed = dataclasses.replace(model, source=dataclasses.replace(model.source, manifest=manifest), novelty=novelty)
    scores = (np.array([0.25, 0.5, 0.25], np.float32), np.array([0.9], np.float32))
    output = ModelOutput(np.array([0, 1], np.float32), scores, scores)
    outcome = Result(output, TokenizedText(([2],), 1), Timings(1, 1, 1, 3, 1, 1, 1))
    found = record(changed, "a", outcome, RequestOptions(novelty=True))
    assert (found["classification"]["confidence"], found["classification"]["abstained"]) == (0.5, True)
    assert "confidence" not in found["sentiment"]
    assert found["novelty"] == 0.25
    assert "novelty" not in record(changed, "a", outcome, RequestOptions())


def test_record_has_the_prediction_set_on_request(model: Model) -> None:
    sets = bundle.PredictionSets(0.9, 0.25, 100)
    topic = dataclasses.replace(model.source.manifest.heads[0], prediction_sets=sets)
    manifest = dataclasses.replace(model.source.manifest, heads=(topic, model.source.manifest.heads[1]))
    changed = dataclasses.replace(model, source=dataclasses.replace(model.source, manifest=manifest))
    scores = (np.array([0.25, 0.5, 0.2], np.float32), np.array([0.9], np.float32))
    output = ModelOutput(np.array([0, 1], np.float32), scores, scores)
    outcome = Result(output, TokenizedText(([2],), 1), Timings(1, 1, 1, 3, 1, 1, 1))
    found = record(changed, "a", outcome, RequestOptions(prediction_sets=True))
    assert found["classification"]["prediction_set"] == ["b", "a"]
    assert "prediction_set" not in found["sentiment"]
    assert "prediction_set" not in record(changed, "a", outcome, RequestOptions())["classification"]


async def test_prediction_sets_may_be_requested_of_any_model(running: HttpServer) -> None:
    reply = await running.post("/v1/analyze", {"text": "w1", "prediction_sets": True})
    assert "prediction_set" not in reply.json["answers"][0]["classification"]
    assert (await running.get("/v1/info")).json["heads"][0]["prediction_sets"] is None
    refused = await running.post("/v1/analyze", {"text": "w1", "prediction_sets": "yes"})
    assert refused.status == 400
