"""HTTP answers of a model with a head of each kind: polyhead's own, text-embeddings-inference's, and the OIP's."""

from __future__ import annotations

import json
from typing import Any

import polyhead_bundle as bundle
import pytest

from tests.support.all_heads import (
    PRICE,
    PRICE_OF_W1,
    STARS_OF_W1,
    TAGS,
    TAGS_OF_W1,
    VALUE_OF_W1,
    AllHeadsEngine,
    with_all_heads,
    with_heads,
)
from tests.support.fake_engine import FakeEngine

from .conftest import HttpServer

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def manifest(manifest: bundle.Manifest) -> bundle.Manifest:
    return with_all_heads(manifest)


@pytest.fixture
def engine() -> FakeEngine:
    return AllHeadsEngine()


def approx(values: dict[str, float]) -> Any:
    return pytest.approx(values, abs=1e-4)


def by_label(scores: Any) -> dict[str, float]:
    return {one["label"]: one["probability"] for one in scores}


@pytest.mark.parametrize("lines", [False, True])
async def test_analyze_answers_with_label_sets_and_scores(running: HttpServer, lines: bool) -> None:
    if lines:
        headers = {"content-type": "application/x-ndjson"}
        answer = json.loads((await running.post("/v1/analyze?tasks=labels,score", b'"w1"\n', headers)).body)
    else:
        (answer,) = (await running.post("/v1/analyze", {"text": "w1", "tasks": ["labels", "score"]})).json["answers"]
    assert set(answer) == {"id", "label_sets", "scores", "truncation"}
    (tags,), (stars, price) = answer["label_sets"], answer["scores"]
    assert by_label(tags["scores"]) == approx(TAGS_OF_W1)
    assert (tags["head"], tags["labels"]) == ("tags", ["late", "broken"])
    assert by_label(stars["probabilities"]) == approx(STARS_OF_W1)
    assert (stars["label"], stars["value"]) == ("4", pytest.approx(VALUE_OF_W1, abs=1e-4))
    assert price == {"head": "price", "value": PRICE_OF_W1, "label": None, "probabilities": []}


async def test_info_names_kinds_and_thresholds(running: HttpServer) -> None:
    heads = {head["name"]: head for head in (await running.get("/v1/info")).json["heads"]}
    assert [head["kind"] for head in heads.values()] == ["softmax", "sigmoid", "multilabel", "ordinal", "regression"]
    assert heads["tags"]["thresholds"] == [0.5, 0.2, 0.6]
    assert heads["topic"]["thresholds"] is None
    assert heads["price"]["labels"] == []


@pytest.mark.parametrize(
    ("head", "scores"), [("tags", TAGS_OF_W1), ("stars", STARS_OF_W1), ("price", {"price": PRICE_OF_W1})]
)
async def test_predict_answers_by_every_kind_of_head(running: HttpServer, head: str, scores: dict[str, float]) -> None:
    answered = (await running.post("/predict", {"inputs": "w1", "head": head})).json
    assert {one["label"]: one["score"] for one in answered} == approx(scores)
    assert [one["score"] for one in answered] == sorted((one["score"] for one in answered), reverse=True)
    # The labels are those of /info.
    known = (await running.get("/info")).json["heads"][head]
    assert set(known.values()) == set(scores)


@pytest.mark.parametrize(
    ("head", "fields", "message"),
    [
        ("tags", {"parameters": {"function_to_apply": "sigmoid"}}, None),
        ("tags", {"parameters": {"function_to_apply": "softmax"}}, "must be sigmoid: scores are calibrated"),
        ("stars", {"parameters": {"function_to_apply": "softmax"}}, "must be absent: scores are calibrated"),
        ("price", {"parameters": {"function_to_apply": "none"}}, None),
        ("price", {"parameters": {"function_to_apply": "sigmoid"}}, "must be none: the score is the output itself"),
        ("price", {"raw_scores": True}, None),
        ("tags", {"raw_scores": True}, "raw_scores is not supported"),
    ],
)
async def test_scores_of_a_head_have_one_form(
    running: HttpServer, head: str, fields: dict[str, Any], message: str | None
) -> None:
    reply = await running.post("/predict", {"inputs": "w1", "head": head, **fields})
    assert reply.status == (422 if message else 200)
    assert message is None or message in reply.json["error"]


async def test_open_inference_protocol_has_a_tensor_for_each_part_of_an_answer(running: HttpServer) -> None:
    inputs = [{"name": "text", "datatype": "BYTES", "shape": [2, 1], "data": ["w1", "w2"]}]
    outputs = {
        one["name"]: one for one in (await running.post("/v2/models/fake/infer", {"inputs": inputs})).json["outputs"]
    }
    described = {one["name"]: one for one in (await running.get("/v2/models/fake")).json["outputs"]}
    assert list(outputs) == list(described)
    for name, one in outputs.items():
        assert (one["datatype"], one["shape"]) == (described[name]["datatype"], [2, described[name]["shape"][1]])
    assert outputs["tags_probabilities"]["data"][:3] == pytest.approx([0.7503, 0.2497, 0.5], abs=1e-4)
    assert json.loads(outputs["tags_labels"]["data"][0]) == ["late", "broken"]
    assert outputs["stars_label"]["data"][0] == "4"
    assert outputs["stars_value"]["data"][0] == pytest.approx(VALUE_OF_W1, abs=1e-4)
    assert outputs["price_value"]["data"] == pytest.approx([PRICE_OF_W1, PRICE_OF_W1 + 10])
    assert not {"tags_label", "price_label", "price_probabilities", "topic_value"} & set(outputs)


class TestModelWithoutSoftmaxAndSigmoid:
    @pytest.fixture
    def manifest(self, manifest: bundle.Manifest) -> bundle.Manifest:
        return with_heads(manifest, (TAGS, PRICE))

    @pytest.fixture
    def engine(self) -> FakeEngine:
        return AllHeadsEngine(kept=(2, 4))

    async def test_it_answers_every_protocol(self, running: HttpServer) -> None:
        (answer,) = (await running.post("/v1/analyze", {"text": "w1"})).json["answers"]
        assert set(answer) == {"id", "embedding", "label_sets", "scores", "truncation"}
        predicted = (await running.post("/predict", {"inputs": "w1"})).json
        assert {one["label"] for one in predicted} == set(TAGS.labels)
        (embedding,) = (await running.post("/v1/embeddings", {"input": "w1", "model": "fake"})).json["data"]
        assert len(embedding["embedding"]) == 2

    async def test_other_tasks_are_not_available(self, running: HttpServer) -> None:
        reply = await running.post("/v1/analyze", {"text": "w1", "tasks": ["classification"]})
        (answer,) = reply.json["answers"]
        assert answer["error"]["reason"] == "TASK_NOT_AVAILABLE"
        assert answer["error"]["message"].endswith("its heads are: tags (multilabel), price (regression)")
