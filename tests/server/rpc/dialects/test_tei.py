"""The gRPC protocol of text-embeddings-inference over a real socket."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import polyhead_bundle as bundle
import pytest
from polyhead_server.rpc.dialects.descriptors import METHODS, TYPES

from tests.support.fake_engine import embedding_of

from .conftest import DialectServer, read_until_error, refusal

pytestmark = pytest.mark.timeout(60)
LONG = "w1 " * 50


def unit(values: list[float]) -> list[float]:
    length = sum(value * value for value in values) ** 0.5
    return [value / length for value in values]


async def test_embed_normalizes_unless_told_otherwise(running: DialectServer) -> None:
    plain = await running.call("tei.v1.Embed/Embed", {"inputs": b"w1"})
    raw = await running.call("tei.v1.Embed/Embed", {"inputs": b"w1", "normalize": False})
    assert list(plain.embeddings) == pytest.approx(unit(embedding_of("w1")))
    assert list(raw.embeddings) == embedding_of("w1")
    assert plain.metadata.compute_tokens == 3


class TestModelThatNormalizes:
    @pytest.fixture
    def manifest(self, manifest: bundle.Manifest) -> bundle.Manifest:
        return dataclasses.replace(manifest, embedding=dataclasses.replace(manifest.embedding, normalized=True))

    async def test_embedding_is_as_the_model_returns_it(self, running: DialectServer) -> None:
        for options in ({}, {"normalize": False}, {"normalize": True}):
            reply = await running.call("tei.v1.Embed/Embed", {"inputs": b"w1", **options})
            assert list(reply.embeddings) == embedding_of("w1")


async def test_unary_reply_carries_its_timings_as_metadata(running: DialectServer) -> None:
    call = running.call("tei.v1.Embed/Embed", {"inputs": b"w1 w2"})
    await call
    names = dict(await call.initial_metadata())
    assert {"x-compute-characters", "x-compute-tokens", "x-total-time", "x-queue-time", "x-inference-time"} <= set(
        names
    )
    assert names["x-compute-tokens"] == "4"


async def test_predict_sorts_the_labels_of_one_head(running: DialectServer) -> None:
    topic = await running.call("tei.v1.Predict/Predict", {"inputs": b"w1"})
    assert [one.label for one in topic.predictions] == ["a", "b", "c"]
    assert [one.score for one in topic.predictions] == sorted((one.score for one in topic.predictions), reverse=True)
    mood = await running.call("tei.v1.Predict/Predict", {"inputs": b"w1"}, metadata=(("head", "sentiment"),))
    assert {one.label for one in mood.predictions} == {"negative", "positive"}
    assert sum(one.score for one in mood.predictions) == pytest.approx(1)


@pytest.mark.parametrize("name", ["Embed/Embed", "Predict/Predict"])
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"inputs": b""}, "inputs cannot be empty"),
        ({"inputs": b"\xff"}, "not valid UTF-8"),
        ({"inputs": LONG.encode()}, "inputs: the text has 52 tokens; the limit is 16; set truncate to true"),
        ({"inputs": b"w1", "truncation_direction": 1}, "truncation_direction must be TRUNCATION_DIRECTION_RIGHT"),
    ],
)
async def test_bad_input_is_refused(running: DialectServer, name: str, fields: dict[str, Any], message: str) -> None:
    code, details = await refusal(running.call(f"tei.v1.{name}", fields))
    assert code == "INVALID_ARGUMENT"
    assert message in details


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("Embed/Embed", {"prompt_name": "queries"}, "no such prompt; its prompts are: passage, query"),
        ("Embed/Embed", {"dimensions": 3}, "only 2 dimensions"),
        ("Predict/Predict", {"raw_scores": True}, "raw_scores is not supported"),
    ],
)
async def test_option_that_cannot_be_served_is_refused(
    running: DialectServer, name: str, fields: dict[str, Any], message: str
) -> None:
    code, details = await refusal(running.call(f"tei.v1.{name}", {"inputs": b"w1"} | fields))
    assert code == "INVALID_ARGUMENT"
    assert message in details


async def test_prompt_is_put_before_the_text(running: DialectServer) -> None:
    fields = {"inputs": b"w1", "prompt_name": "query", "normalize": False}
    assert list((await running.call("tei.v1.Embed/Embed", fields)).embeddings) == embedding_of("w7 w1")
    response = await running.call("tei.v1.Tokenize/Tokenize", {"inputs": b"w1", "prompt_name": "query"})
    assert [(one.text, one.start, one.stop) for one in response.tokens] == [("w7", 0, 2), ("w1", 3, 5)]
    code, details = await refusal(running.call("tei.v1.Tokenize/Tokenize", {"inputs": b"w1", "prompt_name": "queries"}))
    assert (code, "its prompts are" in details) == ("INVALID_ARGUMENT", True)


async def test_unknown_head_is_refused_with_the_known_ones(running: DialectServer) -> None:
    code, details = await refusal(
        running.call("tei.v1.Predict/Predict", {"inputs": b"w1"}, metadata=(("head", "topics"),))
    )
    assert (code, details) == ("INVALID_ARGUMENT", "the model has no head 'topics'; its heads are topic, sentiment")


async def test_long_text_is_cut_on_request(running: DialectServer) -> None:
    response = await running.call("tei.v1.Embed/Embed", {"inputs": LONG.encode(), "truncate": True})
    assert response.metadata.compute_tokens == 16


async def test_streams_answer_in_order(running: DialectServer) -> None:
    request = TYPES["tei.v1.EmbedRequest"]
    requests = [request(inputs=f"w{number}".encode(), normalize=False) for number in range(100)]
    responses = [one async for one in running.call("tei.v1.Embed/EmbedStream", requests)]
    assert [list(one.embeddings) for one in responses] == [embedding_of(f"w{number}") for number in range(100)]


async def test_first_error_ends_a_stream(running: DialectServer) -> None:
    request = TYPES["tei.v1.PredictRequest"]
    call = running.call("tei.v1.Predict/PredictStream", [request(inputs=text) for text in (b"w1", b"", b"w2")])
    responses, code = await read_until_error(call)
    assert code == "INVALID_ARGUMENT"
    assert len(responses) == 1


async def test_tokens_have_their_place_in_the_text(running: DialectServer) -> None:
    response = await running.call("tei.v1.Tokenize/Tokenize", {"inputs": b"w1 w22", "add_special_tokens": True})
    tokens = [(one.text, one.special, one.start, one.stop) for one in response.tokens]
    assert tokens == [("[CLS]", True, 0, 0), ("w1", False, 0, 2), ("w22", False, 3, 6), ("[SEP]", True, 0, 0)]
    assert not response.tokens[0].HasField("start")
    plain = await running.call("tei.v1.Tokenize/Tokenize", {"inputs": b"w1"})
    assert [one.text for one in plain.tokens] == ["w1"]
    text = await running.call("tei.v1.Tokenize/Decode", {"ids": [6, 7], "skip_special_tokens": True})
    assert text.text == "w1 w2"


async def test_drain_ends_a_stream_of_tokens_after_its_answers(running: DialectServer) -> None:
    async def requests() -> Any:
        yield TYPES["tei.v1.EncodeRequest"](inputs=b"w1")
        await asyncio.Event().wait()

    call = running.call("tei.v1.Tokenize/TokenizeStream", requests(), timeout=10)
    responses = []

    async def read() -> None:
        async for response in call:
            responses.append(len(response.tokens))
            running.service.drain()

    code, _ = await refusal(read())
    assert (responses, code) == ([1], "UNAVAILABLE")


async def test_stream_of_tokens_ends_with_the_error_of_a_request(running: DialectServer) -> None:
    request = TYPES["tei.v1.EncodeRequest"]
    call = running.call("tei.v1.Tokenize/TokenizeStream", [request(inputs=b"w1"), request(inputs=b"\xff"), request()])
    responses, code = await read_until_error(call)
    assert (len(responses), code) == (1, "INVALID_ARGUMENT")


async def test_too_many_ids_are_refused(running: DialectServer) -> None:
    code, message = await refusal(running.call("tei.v1.Tokenize/Decode", {"ids": [5] * 65_537}))
    assert code == "INVALID_ARGUMENT"
    assert "at most 65536" in message


async def test_info_tells_the_limits(running: DialectServer) -> None:
    info = await running.call("tei.v1.Info/Info")
    assert (info.model_id, info.max_input_length, info.max_client_batch_size) == ("fake", 16, 8)


NOT_SUPPORTED = ["Embed/EmbedSparse", "Embed/EmbedAll", "Predict/PredictPair", "Rerank/Rerank", "Rerank/RerankStream"]


@pytest.mark.parametrize("name", NOT_SUPPORTED)
async def test_other_methods_are_not_implemented_by_name(running: DialectServer, name: str) -> None:
    service, method = f"tei.v1.{name}".split("/")
    streams = next(one.client_streaming for one in METHODS[service] if one.name == method)
    code, details = await refusal(running.call(f"tei.v1.{name}", [] if streams else None))
    assert code == "UNIMPLEMENTED"
    assert f"tei.v1.{name} is not implemented" in details


async def test_loading_server_is_unavailable(loading: DialectServer) -> None:
    code, _ = await refusal(loading.call("tei.v1.Embed/Embed", {"inputs": b"w1"}))
    assert code == "UNAVAILABLE"
