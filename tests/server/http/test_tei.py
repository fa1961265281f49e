"""The HTTP API of text-embeddings-inference."""

from __future__ import annotations

import dataclasses
from typing import Any

import polyhead_bundle as bundle
import pytest
from polyhead_server.engines import Runtime
from polyhead_server.serving import tei

from tests.support.fake_engine import FakeEngine, embedding_of

from .conftest import HttpServer

pytestmark = pytest.mark.timeout(60)


def unit(values: list[float]) -> list[float]:
    length = sum(value * value for value in values) ** 0.5
    return [value / length for value in values]


@pytest.mark.parametrize("path", ["/embed", "/"])
async def test_embed_answers_a_list_for_one_text_and_for_several(running: HttpServer, path: str) -> None:
    (one,) = (await running.post(path, {"inputs": "w1"})).json
    hub_options = {"wait_for_model": True, "use_cache": False}
    several = (await running.post(path, {"inputs": ["w1", "w2"], "normalize": False, "options": hub_options})).json
    assert one == pytest.approx(unit(embedding_of("w1")))
    assert several == [embedding_of("w1"), embedding_of("w2")]


class TestModelThatNormalizes:
    @pytest.fixture
    def manifest(self, manifest: bundle.Manifest) -> bundle.Manifest:
        return dataclasses.replace(manifest, embedding=dataclasses.replace(manifest.embedding, normalized=True))

    async def test_embedding_is_as_the_model_returns_it(self, running: HttpServer) -> None:
        for body in ({}, {"normalize": False}, {"normalize": True}):
            assert (await running.post("/embed", {"inputs": "w1", **body})).json == [embedding_of("w1")]


async def test_predict_answers_one_text_flat_and_a_batch_nested(running: HttpServer) -> None:
    flat = (await running.post("/predict", {"inputs": "w1"})).json
    nested = (await running.post("/predict", {"inputs": [["w1"], ["w2"]]})).json
    assert [one["label"] for one in flat] == ["a", "b", "c"]
    assert nested[0] == flat
    assert len(nested) == 2
    mood = (await running.post("/predict", {"inputs": "w1", "head": "sentiment"})).json
    assert {one["label"] for one in mood} == {"negative", "positive"}


async def test_predict_answers_nested_to_a_body_with_parameters(running: HttpServer) -> None:
    # huggingface_hub's text_classification, whose URL ends with /predict, takes the first element of a list of lists.
    flat = (await running.post("/predict", {"inputs": "w1"})).json
    assert (await running.post("/predict", {"inputs": "w1", "parameters": {"top_k": 1}})).json == [flat[:1]]


async def test_root_with_parameters_classifies(running: HttpServer) -> None:
    reply = await running.post("/", {"inputs": "w1", "parameters": {}})
    every = (await running.post("/predict", {"inputs": "w1"})).json
    assert reply.json == [every]
    cases: list[tuple[Any, int]] = [
        *(({"top_k": 2}, 2), ({"top_k": 2, "function_to_apply": "softmax"}, 2), ({"top_k": 99}, 3)),
        *(({"top_k": None, "function_to_apply": None}, 3), (None, 3)),
    ]
    for parameters, labels in cases:
        assert (await running.post("/", {"inputs": "w1", "parameters": parameters})).json == [every[:labels]]


async def test_prompt_is_put_before_each_input(running: HttpServer) -> None:
    body = {"inputs": ["w1", "w2"], "prompt_name": "query"}
    assert (await running.post("/embed", body | {"normalize": False})).json == [
        embedding_of("w7 w1"),
        embedding_of("w7 w2"),
    ]
    tokens = (await running.post("/tokenize", body)).json
    assert [[one["text"] for one in row] for row in tokens] == [["[CLS]", "w7", word, "[SEP]"] for word in ("w1", "w2")]


BAD_REQUESTS: list[tuple[str, Any, int, str]] = [
    ("/embed", {"inputs": []}, 400, "cannot be empty"),
    ("/embed", {}, 422, "must be a text"),
    ("/embed", {"inputs": [1, 2]}, 422, "token ids"),
    ("/embed", {"inputs": ["w1", {}]}, 422, "inputs 1 is an object"),
    ("/embed", {"inputs": "w1 " * 50, "truncate": False}, 422, "52 tokens"),
    ("/embed", {"inputs": "w1", "truncation_direction": "left"}, 422, "must be right"),
    ("/embed", {"inputs": "w1", "prompt_name": "queries"}, 422, "its prompts are: passage, query"),
    ("/embed", {"inputs": "w1", "prompt_name": 7}, 422, "prompt_name must be a string"),
    ("/tokenize", {"inputs": "w1", "prompt_name": "queries"}, 422, "its prompts are: passage, query"),
    ("/predict", {"inputs": "w1", "prompt_name": "query"}, 422, "'prompt_name' is not known"),
    ("/predict", {"inputs": ["w1", "w2"]}, 422, 'send [["a"], ["b"]]'),
    ("/predict", {"inputs": "w1", "raw_scores": True}, 422, "raw_scores"),
    ("/predict", {"inputs": "w1", "head": "topics"}, 422, "its heads are topic, sentiment"),
    ("/predict", {"inputs": "w1", "top_k": 1}, 422, "'top_k' is not known"),
    ("/", {"inputs": "w1", "parameters": [1]}, 422, "an array, not an object"),
    ("/", {"inputs": "w1", "parameters": {"top_k": 0}}, 422, "top_k must be an integer from 1"),
    ("/", {"inputs": "w1", "parameters": {"function_to_apply": "none"}}, 422, "must be softmax"),
    ("/", {"inputs": "w1", "parameters": {"function_to_apply": {}}}, 422, "must be softmax"),
    ("/", {"inputs": "w1", "parameters": {"candidate_labels": ["a"]}}, 422, "'candidate_labels' is not known"),
    ("/embed", {"inputs": "w1", "options": {"wait": True}}, 422, "'wait' is not known"),
    ("/embed", {"inputs": "w1", "options": 1}, 422, "a number, not an object"),
    ("/embed", {"inputs": "w1", "parameters": {"top_k": 1}}, 422, "parameters must be empty"),
    ("/tokenize", {"inputs": None}, 422, "must be a text"),
    ("/decode", {"ids": ["a"]}, 422, "list of token ids"),
    ("/embed", {"inputs": ["w1"] * 9}, 422, "at most 8 are allowed"),
    ("/predict", {"inputs": [["w1"]] * 9}, 422, "at most 8 are allowed"),
    ("/tokenize", {"inputs": ["w1"] * 9}, 422, "at most 8 are allowed"),
    ("/decode", {"ids": [[5]] * 9}, 422, "at most 8 are allowed"),
    ("/embed", b"{", 422, "not valid JSON"),
]


async def test_bad_requests_are_refused_in_teis_form(running: HttpServer) -> None:
    for path, body, status, message in BAD_REQUESTS:
        reply = await running.post(path, body)
        assert (reply.status, reply.json["error_type"]) == (status, "Empty" if status == 400 else "Validation")
        assert message in reply.json["error"]


async def test_tokenize_and_decode(running: HttpServer) -> None:
    (tokens,) = (await running.post("/tokenize", {"inputs": "w1 w22"})).json
    assert [(one["text"], one["start"], one["stop"]) for one in tokens] == [
        ("[CLS]", None, None),
        ("w1", 0, 2),
        ("w22", 3, 6),
        ("[SEP]", None, None),
    ]
    assert (await running.post("/decode", {"ids": [one["id"] for one in tokens]})).json == ["w1 w22"]


async def test_tokens_of_a_call_are_bounded(running: HttpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tei, "MAX_TOKENS", 9)
    assert (await running.post("/tokenize", {"inputs": ["w1", "w1", "w1"]})).status == 200
    reply = await running.post("/tokenize", {"inputs": ["w1", "w1", "w1 w2"]})
    assert (reply.status, reply.json["error"]) == (
        422,
        "inputs have more than 9 tokens; send fewer texts, or shorter ones",
    )


async def test_tokens_are_not_awaited_beyond_the_deadline(running: HttpServer) -> None:
    reply = await running.post("/tokenize", {"inputs": ["w1"]}, {"x-request-timeout-s": "1e-9"})
    assert reply.status == 504


async def test_list_of_one_text_is_one_text(running: HttpServer) -> None:
    alone = await running.post("/predict", {"inputs": "w1"})
    assert (await running.post("/predict", {"inputs": ["w1"]})).json == alone.json


async def test_headers_tell_timings_and_truncation(running: HttpServer) -> None:
    reply = await running.post("/embed", {"inputs": ["w1 " * 50]})
    assert reply.headers["x-polyhead-truncated"] == "1"
    assert reply.headers["x-compute-tokens"] == "16"


@pytest.mark.parametrize(("device", "expected"), [("cpu", "cpu"), ("cuda", "gpu")])
async def test_header_tells_the_device_that_computes(
    running: HttpServer, engine: FakeEngine, device: str, expected: str
) -> None:
    engine.runtime = Runtime("fake", device, "fp32")
    assert (await running.post("/embed", {"inputs": "w1"})).headers["x-compute-type"] == expected


async def test_info_and_health(loading: HttpServer) -> None:
    assert (await loading.get("/health")).status == 503
    assert (await loading.get("/info")).json["error_type"] == "Unhealthy"


async def test_health_follows_readiness(running: HttpServer) -> None:
    assert (await running.get("/health")).status == 200
    assert (await running.get("/info")).json["max_input_length"] == 16
    running.ready = False
    assert (await running.get("/ping")).status == 503
