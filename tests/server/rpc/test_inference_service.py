"""Unary calls, deadlines, errors and statistics over a real socket, with the fake engine."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc import aio
from polyhead.v1 import inference_service_pb2 as pb2
from polyhead.v1 import item_pb2
from polyhead_server.inference.pipeline import Pipeline
from polyhead_server.inference.types import Flow, Message
from polyhead_server.rpc.response_encoder import AnswerEncoder

from tests.support.fake_engine import FakeEngine, embedding_of
from tests.support.inference_server import TEXTS, InferenceServer, collect, embedding, items
from tests.support.polling import until

pytestmark = pytest.mark.timeout(60)


async def test_call_before_the_model_is_ready_is_unavailable(loading: InferenceServer) -> None:
    for call in (loading.stub.GetModelInfo(pb2.GetModelInfoRequest()), loading.stub.Analyze(pb2.AnalyzeRequest())):
        with pytest.raises(aio.AioRpcError) as caught:
            await call
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    details = dict(caught.value.trailing_metadata() or ())["grpc-status-details-bin"]
    assert status_pb2.Status.FromString(details).code == 14


async def test_unary_call_answers_in_request_order(running: InferenceServer) -> None:
    response = await running.stub.Analyze(pb2.AnalyzeRequest(items=items(TEXTS)))
    assert [answer.item_id for answer in response.answers] == TEXTS
    assert [embedding(answer) for answer in response.answers] == [embedding_of(text) for text in TEXTS]


async def test_call_without_items_gets_no_answers(running: InferenceServer) -> None:
    assert await running.stub.Analyze(pb2.AnalyzeRequest()) == pb2.AnalyzeResponse()


async def test_too_many_dimensions_are_rejected_and_the_stream_continues(running: InferenceServer) -> None:
    options = [item_pb2.EmbeddingOptions(dimensions=number) for number in (3, 2, 1)]
    unary = await running.stub.Analyze(pb2.AnalyzeRequest(items=items(["w1"]), embedding_options=options[0]))
    requests = (pb2.StreamEmbedRequest(items=items(["w1"]), embedding_options=one) for one in options)
    refused, whole, cut = await collect(running.stub.StreamEmbed(requests))
    for answer in (*unary.answers, refused):
        assert (answer.item_id, answer.error.code) == ("w1", grpc.StatusCode.INVALID_ARGUMENT.value[0])
        assert "only 2 dimensions" in answer.error.message
    assert [embedding(whole), embedding(cut)] == [embedding_of("w1"), embedding_of("w1")[:1]]


@pytest.mark.parametrize("texts", [["w2"], ["w2", "w3"]])
async def test_cancelled_call_is_not_computed(running: InferenceServer, engine: FakeEngine, texts: list[str]) -> None:
    engine.gate.clear()
    first = asyncio.ensure_future(running.stub.Analyze(pb2.AnalyzeRequest(items=items(["w1"]))))
    await engine.hold()
    pipeline = running.service.pipeline
    assert isinstance(pipeline, Pipeline)
    call = running.stub.Analyze(pb2.AnalyzeRequest(items=items(texts)))
    await until(lambda: pipeline.scheduler.accounting.waiting_items >= len(texts))
    call.cancel()
    await until(lambda: not pipeline.scheduler.accounting.waiting_items)
    engine.gate.set()
    (answer,) = (await first).answers
    assert embedding(answer) == embedding_of("w1")
    assert engine.batch_shapes == [(1, 3)]


async def test_deadline_of_the_call_reaches_its_items(
    running: InferenceServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = running.service.pipeline
    assert isinstance(pipeline, Pipeline)
    deadlines: list[float | None] = []
    submit = pipeline.submit

    async def spy(message: Message, call: Flow, deadline: float | None, **options: bool) -> Any:
        deadlines.append(deadline)
        return await submit(message, call, deadline, **options)

    monkeypatch.setattr(pipeline, "submit", spy)
    request = pb2.StreamAnalyzeRequest(items=items(["w1"]))
    before = time.monotonic()
    for timeout in (50, None):
        await running.stub.Analyze(pb2.AnalyzeRequest(items=items(["w1"])), timeout=timeout)
        await collect(running.stub.StreamAnalyze(iter([request]), timeout=timeout))
    unary, stream, *without = deadlines
    assert without == [None, None]
    for deadline in (unary, stream):
        assert deadline is not None
        assert before < deadline < time.monotonic() + 60


async def test_server_is_idle_only_between_calls(running: InferenceServer, engine: FakeEngine) -> None:
    assert await running.service.wait_idle(0.0) or await running.service.wait_idle(10)
    engine.gate.clear()
    call = asyncio.ensure_future(running.stub.Analyze(pb2.AnalyzeRequest(items=items(["w1"]))))
    await engine.hold()
    assert not await running.service.wait_idle(0.01)
    engine.gate.set()
    await call
    assert await running.service.wait_idle(10)


async def test_unexpected_error_reveals_no_internals(
    running: InferenceServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise ValueError("an internal secret")

    monkeypatch.setattr(AnswerEncoder, "encode", broken)
    with pytest.raises(aio.AioRpcError) as caught:
        await running.stub.Analyze(pb2.AnalyzeRequest(items=items(["w1"])))
    assert caught.value.code() == grpc.StatusCode.INTERNAL
    assert "secret" not in str(caught.value.details())
    incident = str(caught.value.details()).rpartition(" ")[2]
    assert incident in caplog.text


async def test_model_info_describes_the_model(running: InferenceServer) -> None:
    info = (await running.stub.GetModelInfo(pb2.GetModelInfoRequest())).model
    assert info.model_id == f"fake-{'d' * 12}"
    assert [(head.name, list(head.labels)) for head in info.heads] == [
        ("topic", ["a", "b", "c"]),
        ("sentiment", ["negative", "positive"]),
    ]
    assert not info.heads[0].HasField("threshold")
    assert info.heads[1].threshold == 0.5
    assert (info.runtime.engine, info.runtime.device, info.runtime.variant) == ("fake", "cpu", "fp32")
    assert info.fingerprints.embedding_space == "e" * 16
    assert (info.limits.max_tokens, info.embedding.dimensions) == (16, 2)


def expecting(space: str = "", **heads: str) -> item_pb2.ItemOptions:
    fingerprints = [item_pb2.HeadFingerprint(head=head, fingerprint=value) for head, value in heads.items()]
    return item_pb2.ItemOptions(expected_fingerprints=item_pb2.Fingerprints(embedding_space=space, heads=fingerprints))


@pytest.mark.parametrize(
    ("options", "component"),
    [
        (expecting("e" * 16, topic="t" * 16), None),
        (expecting(topic="t" * 16), None),
        (expecting("x" * 16), "embedding_space"),
        (expecting("e" * 16, topic="x" * 16), "topic"),
        (expecting(unknown="x" * 16), "a head that the model does not have"),
    ],
)
async def test_items_are_rejected_if_the_model_is_not_the_expected_one(
    running: InferenceServer, options: item_pb2.ItemOptions, component: str | None
) -> None:
    request = pb2.AnalyzeRequest(items=items(["w1"]), options=options)
    (unary,) = (await running.stub.Analyze(request)).answers
    (stream,) = await collect(
        running.stub.StreamAnalyze(iter([pb2.StreamAnalyzeRequest(items=items(["w1"]), options=options)]))
    )
    for answer in (unary, stream):
        assert answer.error.code == (0 if component is None else grpc.StatusCode.FAILED_PRECONDITION.value[0])
        assert component is None or component in answer.error.message


async def test_unary_call_without_an_accepted_item_fails_as_a_whole(
    running: InferenceServer, engine: FakeEngine
) -> None:
    pipeline = running.service.pipeline
    assert isinstance(pipeline, Pipeline)
    for _ in range(200):
        pipeline.admission.observe_batch(tokens=1, compute_s=100.0, backlog=True)
    engine.gate.clear()
    first = asyncio.ensure_future(running.stub.Analyze(pb2.AnalyzeRequest(items=items(["w1"]))))
    await engine.hold()
    waiting = asyncio.ensure_future(running.stub.Analyze(pb2.AnalyzeRequest(items=items(["w2"] * 9))))
    await until(lambda: pipeline.scheduler.accounting.waiting_items)
    with pytest.raises(aio.AioRpcError) as caught:
        await running.stub.Analyze(pb2.AnalyzeRequest(items=items(["w3"])), timeout=20)
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    metadata = dict(caught.value.trailing_metadata() or ())
    assert int(metadata["grpc-retry-pushback-ms"]) >= 1
    status = status_pb2.Status.FromString(metadata["grpc-status-details-bin"])
    retry = error_details_pb2.RetryInfo()
    assert status.details[1].Unpack(retry)
    # A stream gets the error in its answers and continues.
    call = running.stub.StreamAnalyze(iter([pb2.StreamAnalyzeRequest(items=items(["w4"]))]), timeout=20)
    (answer,) = await collect(call)
    assert answer.error.code == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
    engine.gate.set()
    await first
    # One of the nine items is accepted; the others are rejected, and the call continues.
    refused = [answer.error.code for answer in (await waiting).answers]
    assert refused == [0, *[grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]] * 8]
    assert running.service.stats().item_errors_total == {"OVERLOADED": 10}


async def test_stats_describe_the_current_load(running: InferenceServer, engine: FakeEngine) -> None:
    await running.stub.Analyze(pb2.AnalyzeRequest(items=items(["w1", "w1 w2", "[SEP] " * 30])))
    engine.gate.clear()
    call = asyncio.ensure_future(running.stub.Analyze(pb2.AnalyzeRequest(items=items(["w1"]))))
    await until(lambda: running.service.stats().requests_running == 1)
    stats = running.service.stats()
    assert (stats.items_total, stats.tokens_total, stats.serving) == (3, 3 + 4 + 16, True)
    assert stats.batches_total == len(engine.batch_shapes)
    assert stats.padding_tokens_total == sum(count * length for count, length in engine.batch_shapes) - 23
    assert running.service.metrics.value("polyhead_truncated_items_total") == 1
    engine.gate.set()
    await call
