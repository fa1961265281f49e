"""Bidirectional streams over a real socket, with the fake engine: order, limits, cancellation, draining, reloads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import grpc
import polyhead_bundle as bundle
import pytest
from grpc import aio
from polyhead.v1 import inference_service_pb2 as pb2
from polyhead.v1 import item_pb2
from polyhead_server.inference.model import Model
from polyhead_server.inference.pipeline import Pipeline
from polyhead_server.inference.tokenization import Tokenizer
from polyhead_server.settings import Settings

from tests.support.fake_engine import FakeEngine, embedding_of
from tests.support.inference_server import TEXTS, InferenceServer, collect, collect_into, embedding, items
from tests.support.polling import until

pytestmark = pytest.mark.timeout(60)


@pytest.mark.parametrize("per_message", [1, 7, 100])
async def test_stream_answers_every_item_in_request_order(running: InferenceServer, per_message: int) -> None:
    requests = (
        pb2.StreamAnalyzeRequest(items=items(TEXTS[start : start + per_message]))
        for start in range(0, len(TEXTS), per_message)
    )
    answers = await collect(running.stub.StreamAnalyze(requests))
    assert [(answer.item_id, embedding(answer)) for answer in answers] == [(text, embedding_of(text)) for text in TEXTS]


async def test_stream_answers_in_order_of_completion_on_request(running: InferenceServer, engine: FakeEngine) -> None:
    engine.gate.clear()
    call = running.stub.StreamAnalyze()
    await call.write(pb2.StreamAnalyzeRequest(items=items(["w1"]), order=item_pb2.ANSWER_ORDER_COMPLETION))
    bad = item_pb2.Item(item_id="b" * 300, text="")
    await call.write(pb2.StreamAnalyzeRequest(items=[bad]))
    first = await call.read()
    assert [answer.WhichOneof("outcome") for answer in first.answers] == ["error"]
    engine.gate.set()
    second = await call.read()
    assert [answer.item_id for answer in second.answers] == ["w1"]
    await call.done_writing()
    assert await call.read() is aio.EOF


async def test_order_cannot_change_within_a_stream(running: InferenceServer) -> None:
    requests = [
        pb2.StreamAnalyzeRequest(items=items(["w1"])),
        pb2.StreamAnalyzeRequest(items=items(["w2"]), order=item_pb2.ANSWER_ORDER_COMPLETION),
        pb2.StreamAnalyzeRequest(items=items(["w3"]), order=item_pb2.ANSWER_ORDER_REQUEST),
    ]
    answers = await collect(running.stub.StreamAnalyze(iter(requests)))
    assert [answer.error.code for answer in answers] == [0, 3, 0]


@pytest.mark.parametrize(
    ("name", "field"),
    [("StreamEmbed", "embedding"), ("StreamClassify", "classification"), ("StreamSentiment", "sentiment")],
)
async def test_single_task_stream_answers_its_task_only(running: InferenceServer, name: str, field: str) -> None:
    request = getattr(pb2, f"{name}Request")(items=items(TEXTS))
    answers = await collect(getattr(running.stub, name)(iter([request])))
    assert [answer.item_id for answer in answers] == TEXTS
    for answer in answers:
        tasks = {descriptor.name for descriptor, _ in answer.result.ListFields()}
        assert tasks == {field, "truncation", "fingerprints"}


async def test_malformed_message_is_answered_and_the_stream_continues(running: InferenceServer) -> None:
    call = running.raw_stream()
    broken = (
        pb2.StreamAnalyzeRequest(items=items(["w1", "wXX", "w2"])).SerializeToString().replace(b"wXX", b"w\xff\xff")
    )
    for data in (broken, b"\x0a\xff", pb2.StreamAnalyzeRequest(items=items(["w3"])).SerializeToString()):
        await call.write(data)
    await call.done_writing()
    answers = await collect(call)
    assert [answer.error.code for answer in answers] == [0, 3, 0, 3, 0]
    assert [embedding(answers[index]) for index in (0, 2, 4)] == [embedding_of(text) for text in ("w1", "w2", "w3")]


async def test_stream_accepts_no_more_items_than_its_window(running: InferenceServer, engine: FakeEngine) -> None:
    engine.gate.clear()
    first = asyncio.ensure_future(running.stub.Analyze(pb2.AnalyzeRequest(items=items(["w1"]))))
    await engine.hold()  # so that no text of the stream is in a batch
    seen = 0

    async def requests() -> AsyncIterator[pb2.StreamAnalyzeRequest]:
        nonlocal seen
        for text in TEXTS:
            yield pb2.StreamAnalyzeRequest(items=items([text]))
            seen += 1

    window = asyncio.ensure_future(collect(running.stub.StreamAnalyze(requests())))
    pipeline = running.service.pipeline
    assert isinstance(pipeline, Pipeline)
    await until(lambda: pipeline.scheduler.accounting.waiting_tokens >= 8 * 3)
    other = await running.stub.GetModelInfo(pb2.GetModelInfoRequest())
    assert other.model.runtime.engine == "fake"
    # The window of 8 is in the queue.
    assert len(pipeline.scheduler.snapshot().entries) == 8
    engine.gate.set()
    await first
    assert len(await window) == len(TEXTS) == seen


async def test_cancelled_stream_is_not_computed(running: InferenceServer, engine: FakeEngine) -> None:
    engine.gate.clear()
    first = asyncio.ensure_future(running.stub.Analyze(pb2.AnalyzeRequest(items=items(["w1"]))))
    await engine.hold()
    pipeline = running.service.pipeline
    assert isinstance(pipeline, Pipeline)
    call = running.stub.StreamAnalyze()
    await call.write(pb2.StreamAnalyzeRequest(items=items(["w2", "w3"])))
    await until(lambda: pipeline.scheduler.accounting.waiting_tokens >= 6)
    call.cancel()
    await until(lambda: all(entry.future.cancelled() for entry in pipeline.scheduler.snapshot().entries))
    engine.gate.set()
    await first
    (answer,) = (await running.stub.Analyze(pb2.AnalyzeRequest(items=items(["w4"])))).answers
    assert embedding(answer) == embedding_of("w4")
    assert engine.batch_shapes == [(1, 3), (1, 3)]


async def test_draining_stream_answers_accepted_items_and_then_ends(
    running: InferenceServer, engine: FakeEngine
) -> None:
    engine.gate.clear()
    call = running.stub.StreamAnalyze()
    await call.write(pb2.StreamAnalyzeRequest(items=items(["w1", "w2"])))
    await engine.hold()
    running.service.drain()
    engine.gate.set()
    answers: list[item_pb2.Answer] = []
    with pytest.raises(aio.AioRpcError) as caught:
        await collect_into(answers, call)
    assert [answer.item_id for answer in answers] == ["w1", "w2"]
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    with pytest.raises(aio.AioRpcError, match="shutting down"):
        await running.stub.Analyze(pb2.AnalyzeRequest())


async def test_stream_continues_with_the_reloaded_model(
    running: InferenceServer, model: Model, tokenizer_file: Path, settings: Callable[..., Settings]
) -> None:
    call = running.stub.StreamAnalyze()
    await call.write(pb2.StreamAnalyzeRequest(items=items(["w1"])))
    (first,) = (await call.read()).answers
    variants = model.source.manifest.variants
    fingerprints = bundle.Fingerprints("e" * 16, {"topic": "T" * 16, "sentiment": "s" * 16})
    manifest = replace(model.source.manifest, variants={"fp32": replace(variants["fp32"], fingerprints=fingerprints)})
    source = bundle.Bundle(Path("new"), manifest, "f" * 64)
    old = running.service.pipeline
    assert isinstance(old, Pipeline)
    pipeline = Pipeline(
        Model(source, Tokenizer(tokenizer_file, 16, 1000), FakeEngine(), (), max_batch_tokens=256), settings()
    )
    pipeline.start()
    running.service.serve(pipeline)
    await old.close()
    await call.write(pb2.StreamAnalyzeRequest(items=items(["w2"])))
    (second,) = (await call.read()).answers
    await call.done_writing()
    heads = [[head.fingerprint for head in answer.result.fingerprints.heads] for answer in (first, second)]
    assert heads == [["t" * 16, "s" * 16], ["T" * 16, "s" * 16]]
    assert [embedding(answer) for answer in (first, second)] == [embedding_of("w1"), embedding_of("w2")]
    await pipeline.close()


async def test_stream_with_items_in_the_old_queue_continues_in_the_new_one(
    running: InferenceServer, engine: FakeEngine, model: Model, settings: Callable[..., Settings]
) -> None:
    old, call = running.service.pipeline, running.stub.StreamAnalyze()
    assert isinstance(old, Pipeline)
    engine.gate.clear()
    await call.write(pb2.StreamAnalyzeRequest(items=items(["w1"])))
    await engine.hold()
    await call.write(pb2.StreamAnalyzeRequest(items=items(["w2 w2", "w3"])))
    await until(lambda: old.scheduler.accounting.waiting_items >= 2)
    new_engine = FakeEngine()
    new = Pipeline(replace(model, engine=new_engine), settings())
    new.start()
    running.service.serve(new)
    await call.write(pb2.StreamAnalyzeRequest(items=items(["w4"])))
    # It is computed before the items that are queued for the old model.
    await new_engine.hold()
    engine.gate.set()
    await call.done_writing()
    assert [answer.item_id for answer in await collect(call)] == ["w1", "w2 w2", "w3", "w4"]
    await new.close()
