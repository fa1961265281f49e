"""Answers of a model with a head of each kind over gRPC, for clients of this protocol and of the released one."""

from __future__ import annotations

from typing import Any

import polyhead_bundle as bundle
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from polyhead.v1 import inference_service_pb2 as pb2
from polyhead.v1 import item_pb2, model_pb2
from polyhead_server.rpc import service_names

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
from tests.support.demo import ROOT
from tests.support.fake_engine import FakeEngine
from tests.support.inference_server import InferenceServer, collect, items

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def manifest(manifest: bundle.Manifest) -> bundle.Manifest:
    return with_all_heads(manifest)


@pytest.fixture
def engine() -> FakeEngine:
    return AllHeadsEngine()


def by_label(scores: Any) -> dict[str, float]:
    return {score.label: round(score.probability, 4) for score in scores}


@pytest.mark.parametrize("method", ["Analyze", "StreamAnalyze"])
async def test_every_head_answers_a_request_without_tasks(running: InferenceServer, method: str) -> None:
    request = getattr(pb2, f"{method}Request")(items=items(["w1"]))
    stub = getattr(running.stub, method)
    (answer,) = (await stub(request)).answers if method == "Analyze" else await collect(stub(iter([request])))
    result = answer.result
    assert (result.classification.head, result.sentiment.head) == ("topic", "sentiment")
    (tags,), (stars, price) = result.label_sets, result.scores
    assert by_label(tags.scores) == pytest.approx(TAGS_OF_W1)
    assert list(by_label(tags.scores)) == list(TAGS_OF_W1)
    # The thresholds are 0.5, 0.2 and 0.6.
    assert list(tags.labels) == ["late", "broken"]
    assert by_label(stars.probabilities) == pytest.approx(STARS_OF_W1)
    assert (stars.label, stars.value) == ("4", pytest.approx(VALUE_OF_W1, abs=1e-4))
    assert (price.head, price.value) == ("price", pytest.approx(PRICE_OF_W1))


async def test_windows_of_a_long_text_are_pooled_for_every_head(running: InferenceServer) -> None:
    options = item_pb2.ItemOptions(truncation=item_pb2.TRUNCATION_POLICY_WINDOW)
    text = " ".join(["w1"] * 30)
    (answer,) = (await running.stub.Analyze(pb2.AnalyzeRequest(items=items([text]), options=options))).answers
    assert answer.result.truncation.windows > 1
    price = answer.result.scores[1].value
    # All windows have the same number of tokens, each of the same id, and two special tokens.
    tokens = answer.result.truncation.tokens_used // answer.result.truncation.windows
    assert price == pytest.approx(10 * (6 * (tokens - 2) + 5))


async def test_description_names_kinds_labels_and_thresholds(running: InferenceServer) -> None:
    model = (await running.stub.GetModelInfo(pb2.GetModelInfoRequest())).model
    tags, stars, price = model.heads[2:]
    assert [head.kind for head in (tags, stars, price)] == [
        model_pb2.HEAD_KIND_MULTILABEL,
        model_pb2.HEAD_KIND_ORDINAL,
        model_pb2.HEAD_KIND_REGRESSION,
    ]
    assert list(tags.thresholds) == pytest.approx([0.5, 0.2, 0.6])
    assert (list(stars.labels), list(price.labels)) == (["1", "2", "3", "4", "5"], [])
    assert not any(head.HasField("threshold") for head in (tags, stars, price))


class TestModelWithoutSoftmaxAndSigmoid:
    @pytest.fixture
    def manifest(self, manifest: bundle.Manifest) -> bundle.Manifest:
        return with_heads(manifest, (TAGS, PRICE))

    @pytest.fixture
    def engine(self) -> FakeEngine:
        return AllHeadsEngine(kept=(2, 4))

    async def test_it_answers_with_what_it_has(self, running: InferenceServer) -> None:
        (answer,) = (await running.stub.Analyze(pb2.AnalyzeRequest(items=items(["w1"])))).answers
        result = answer.result
        assert [one.head for one in (*result.label_sets, *result.scores)] == ["tags", "price"]
        assert not result.HasField("classification")
        assert not result.HasField("sentiment")

    async def test_other_tasks_are_not_available(self, running: InferenceServer) -> None:
        request = pb2.StreamSentimentRequest(items=items(["w1"]))
        (answer,) = await collect(running.stub.StreamSentiment(iter([request])))
        message = "the model has no head for sentiment; its heads are: tags (multilabel), price (regression)"
        assert answer.error.message == message


async def test_client_of_the_released_protocol_reads_what_it_knows(running: InferenceServer) -> None:
    """The fields and kinds that it does not know leave the others as they were."""
    image = descriptor_pb2.FileDescriptorSet.FromString((ROOT / "proto/released.binpb").read_bytes())
    pool = descriptor_pool.DescriptorPool()
    for file in image.file:
        pool.Add(file)

    def released(name: str) -> Any:
        return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"polyhead.v1.{name}"))

    async def call(name: str, request: Any) -> Any:
        method = running.channel.unary_unary(
            f"/{service_names.INFERENCE}/{name}",
            type(request).SerializeToString,
            released(f"{name}Response").FromString,
        )
        return await method(request)

    request = released("AnalyzeRequest")(items=[{"item_id": "x", "text": "w1"}])
    (answer,) = (await call("Analyze", request)).answers
    assert [score.label for score in answer.result.classification.scores] == ["a", "b", "c"]
    assert answer.result.sentiment.label == "positive"
    assert answer.result.embedding.dimensions == 2
    model = (await call("GetModelInfo", released("GetModelInfoRequest")())).model
    assert [(head.name, head.kind) for head in model.heads[:2]] == [("topic", 1), ("sentiment", 2)]
