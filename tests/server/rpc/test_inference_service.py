"""The RPCs over a real socket, with the fake engine."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import polyhead_bundle as bundle
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc import aio
from polyhead.v1 import inference_service_pb2 as pb2
from polyhead.v1 import inference_service_pb2_grpc, item_pb2
from polyhead_server.inference.model import Model
from polyhead_server.inference.pipeline import Pipeline
from polyhead_server.inference.tokenization import Tokenizer
from polyhead_server.inference.types import Flow, Message
from polyhead_server.observability.metrics import Metrics
from polyhead_server.rpc import service_names
from polyhead_server.rpc.handlers import inference_handler
from polyhead_server.rpc.inference_service import InferenceService
from polyhead_server.rpc.interceptors.errors import ErrorInterceptor
from polyhead_server.rpc.response_encoder import ResponseEncoder
from polyhead_server.settings import Settings

from tests.support.fake_engine import FakeEngine, embedding_of

pytestmark = pytest.mark.timeout(60)


class Running:
    """A server with its service and a channel to it."""

    def __init__(self, service: InferenceService, channel: aio.Channel) -> None:
        self.service = service
        self.channel = channel
        self.stub: Any = inference_service_pb2_grpc.InferenceServiceStub(channel)

    def raw_stream(self, name: str = "StreamAnalyze") -> Any:
        """A stream whose requests are bytes."""
        response_type = getattr(pb2, f"{name}Response")
        return self.channel.stream_stream(
            f"/{service_names.INFERENCE}/{name}", lambda data: data, response_type.FromString
        )()


@pytest.fixture
async def bare(settings: Callable[..., Settings]) -> AsyncIterator[Running]:
    """A server whose model is not loaded yet."""
    service = InferenceService(settings(stream_window=8), Metrics())
    server = aio.server(interceptors=[ErrorInterceptor(service_names.INFERENCE)])
    server.add_generic_rpc_handlers((inference_handler(service),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield Running(service, channel)
    await server.stop(None)


@pytest.fixture
async def running(bare: Running, model: Model, settings: Callable[..., Settings]) -> AsyncIterator[Running]:
    pipeline = Pipeline(model, settings(), bare.service.metrics.observe_batch)
    pipeline.start()
    bare.service.serve(pipeline)
    yield bare
    await pipeline.close()


def items(texts: Iterable[str]) -> list[item_pb2.Item]:
    return [item_pb2.Item(item_id=text, text=text) for text in texts]


async def collect(call: Any) -> list[item_pb2.Answer]:
    answers: list[item_pb2.Answer] = []
    await collect_into(answers, call)
    return answers


async def collect_into(answers: list[item_pb2.Answer], call: Any) -> None:
    async for response in call:
        answers.extend(response.answers)


def embedding(answer: item_pb2.Answer) -> list[float]:
    import numpy as np

    return [float(value) for value in np.frombuffer(answer.result.embedding.values, "<f4")]


TEXTS = [f"w{number % 200} w1" if number % 3 else f"w{number % 200}" for number in range(100)]


async def test_call_before_the_model_is_ready_is_unavailable(bare: Running) -> None:
    for call in (bare.stub.GetModelInfo(pb2.GetModelInfoRequest()), bare.stub.Analyze(pb2.AnalyzeRequest())):
        with pytest.raises(aio.AioRpcError) as caught:
            await call
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    details = dict(caught.value.trailing_metadata() or ())["grpc-status-details-bin"]
    assert status_pb2.Status.FromString(details).code == 14


async def test_unary_call_answers_in_request_order(running: Running) -> None:
    response = await running.stub.Analyze(pb2.AnalyzeRequest(items=items(TEXTS)))
    assert [answer.item_id for answer in response.answers] == TEXTS
    assert [embedding(answer) for answer in response.answers] == [embedding_of(text) for text in TEXTS]


async def test_too_many_dimensions_are_rejected_and_the_stream_continues(running: Running) -> None:
    options = [item_pb2.EmbeddingOptions(dimensions=number) for number in (3, 2, 1)]
    unary = await running.stub.Analyze(pb2.AnalyzeRequest(items=items(["w1"]), embedding_options=options[0]))
    requests = (pb2.StreamEmbedRequest(items=items(["w1"]), embedding_options=one) for one in options)
    refused, whole, cut = await collect(running.stub.StreamEmbed(requests))
    for answer in (*unary.answers, refused):
        assert (answer.item_id, answer.error.code) == ("w1", grpc.StatusCode.INVALID_ARGUMENT.value[0])
        assert "2 dimensions, not 3" in answer.error.message
    assert [embedding(whole), embedding(cut)] == [embedding_of("w1"), embedding_of("w1")[:1]]


@pytest.mark.parametrize("per_message", [1, 7, 100])
async def test_stream_answers_every_item_in_request_order(running: Running, per_message: int) -> None:
    requests = (
        pb2.StreamAnalyzeRequest(items=items(TEXTS[start : start + per_message]))
        for start in range(0, len(TEXTS), per_message)
    )
    answers = await collect(running.stub.StreamAnalyze(requests))
    assert [(answer.item_id, embedding(answer)) for answer in answers] == [(text, embedding_of(text)) for text in TEXTS]


async def test_stream_answers_in_order_of_completion_on_request(running: Running, engine: FakeEngine) -> None:
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


async def test_order_cannot_change_within_a_stream(running: Running) -> None:
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
async def test_single_task_stream_answers_its_task_only(running: Running, name: str, field: str) -> None:
    request = getattr(pb2, f"{name}Request")(items=items(TEXTS))
    answers = await collect(getattr(running.stub, name)(iter([request])))
    assert [answer.item_id for answer in answers] == TEXTS
    for answer in answers:
        tasks = {descriptor.name for descriptor, _ in answer.result.ListFields()}
        assert tasks == {field, "truncation", "fingerprints"}


async def test_malformed_message_is_answered_and_the_stream_continues(running: Running) -> None:
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


async def test_stream_accepts_no_more_items_than_its_window(running: Running, engine: FakeEngine) -> None:
    engine.gate.clear()
    seen = 0

    async def requests() -> AsyncIterator[pb2.StreamAnalyzeRequest]:
        nonlocal seen
        for text in TEXTS:
            yield pb2.StreamAnalyzeRequest(items=items([text]))
            seen += 1

    window = asyncio.ensure_future(collect(running.stub.StreamAnalyze(requests())))
    pipeline = running.service.pipeline
    assert pipeline is not None
    while pipeline.scheduler.accounting.waiting_tokens < 7 * 3:
        await asyncio.sleep(0.001)
    other = await running.stub.GetModelInfo(pb2.GetModelInfoRequest())
    assert other.model.runtime.engine == "fake"
    # One text is in the engine; the rest of the window of 8 is in the queue.
    assert len(pipeline.scheduler.snapshot().entries) <= 8
    engine.gate.set()
    assert len(await window) == len(TEXTS) == seen


async def test_cancelled_stream_is_not_computed(running: Running, engine: FakeEngine) -> None:
    engine.gate.clear()
    first = asyncio.ensure_future(running.stub.Analyze(pb2.AnalyzeRequest(items=items(["w1"]))))
    await engine.hold()
    pipeline = running.service.pipeline
    assert pipeline is not None
    call = running.stub.StreamAnalyze()
    await call.write(pb2.StreamAnalyzeRequest(items=items(["w2", "w3"])))
    while pipeline.scheduler.accounting.waiting_tokens < 6:
        await asyncio.sleep(0.001)
    call.cancel()
    while not all(entry.future.cancelled() for entry in pipeline.scheduler.snapshot().entries):
        await asyncio.sleep(0.001)
    engine.gate.set()
    await first
    (answer,) = (await running.stub.Analyze(pb2.AnalyzeRequest(items=items(["w4"])))).answers
    assert embedding(answer) == embedding_of("w4")
    assert engine.batch_shapes == [(1, 3), (1, 3)]


@pytest.mark.parametrize("texts", [["w2"], ["w2", "w3"]])
async def test_cancelled_call_is_not_computed(running: Running, engine: FakeEngine, texts: list[str]) -> None:
    engine.gate.clear()
    first = asyncio.ensure_future(running.stub.Analyze(pb2.AnalyzeRequest(items=items(["w1"]))))
    await engine.hold()
    pipeline = running.service.pipeline
    assert pipeline is not None
    call = running.stub.Analyze(pb2.AnalyzeRequest(items=items(texts)))
    while pipeline.scheduler.accounting.waiting_items < len(texts):
        await asyncio.sleep(0.001)
    call.cancel()
    async with asyncio.timeout(10):
        while pipeline.scheduler.accounting.waiting_items:
            await asyncio.sleep(0.001)
    engine.gate.set()
    (answer,) = (await first).answers
    assert embedding(answer) == embedding_of("w1")
    assert engine.batch_shapes == [(1, 3)]


async def test_draining_stream_answers_accepted_items_and_then_ends(running: Running, engine: FakeEngine) -> None:
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


async def test_deadline_of_the_call_reaches_its_items(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = running.service.pipeline
    assert pipeline is not None
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


async def test_server_is_idle_only_between_calls(running: Running, engine: FakeEngine) -> None:
    assert await running.service.wait_idle(0.0) or await running.service.wait_idle(10)
    engine.gate.clear()
    call = asyncio.ensure_future(running.stub.Analyze(pb2.AnalyzeRequest(items=items(["w1"]))))
    await engine.hold()
    assert not await running.service.wait_idle(0.01)
    engine.gate.set()
    await call
    assert await running.service.wait_idle(10)


async def test_message_with_too_many_items_gets_one_answer(bare: Running, running: Running) -> None:
    response = await running.stub.Analyze(pb2.AnalyzeRequest(items=[item_pb2.Item()] * (bare.service.max_items + 1)))
    (answer,) = response.answers
    assert (answer.item_id, answer.error.code) == ("", 3)


async def test_unexpected_error_reveals_no_internals(
    running: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise ValueError("an internal secret")

    monkeypatch.setattr(ResponseEncoder, "encode", broken)
    with pytest.raises(aio.AioRpcError) as caught:
        await running.stub.Analyze(pb2.AnalyzeRequest(items=items(["w1"])))
    assert caught.value.code() == grpc.StatusCode.INTERNAL
    assert "secret" not in str(caught.value.details())
    incident = str(caught.value.details()).rpartition(" ")[2]
    assert incident in caplog.text


async def test_model_info_describes_the_model(running: Running) -> None:
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
        (expecting(unknown="x" * 16), "unknown"),
    ],
)
async def test_items_are_rejected_if_the_model_is_not_the_expected_one(
    running: Running, options: item_pb2.ItemOptions, component: str | None
) -> None:
    request = pb2.AnalyzeRequest(items=items(["w1"]), options=options)
    (unary,) = (await running.stub.Analyze(request)).answers
    (stream,) = await collect(
        running.stub.StreamAnalyze(iter([pb2.StreamAnalyzeRequest(items=items(["w1"]), options=options)]))
    )
    for answer in (unary, stream):
        assert answer.error.code == (0 if component is None else grpc.StatusCode.FAILED_PRECONDITION.value[0])
        assert component is None or component in answer.error.message


async def test_unary_call_without_an_accepted_item_fails_as_a_whole(running: Running, engine: FakeEngine) -> None:
    pipeline = running.service.pipeline
    assert pipeline is not None
    for _ in range(200):
        pipeline.admission.observe_batch(tokens=1, compute_s=100.0, backlog=True)
    engine.gate.clear()
    first = asyncio.ensure_future(running.stub.Analyze(pb2.AnalyzeRequest(items=items(["w1"]))))
    await engine.hold()
    waiting = asyncio.ensure_future(running.stub.Analyze(pb2.AnalyzeRequest(items=items(["w2"] * 9))))
    while not pipeline.scheduler.accounting.waiting_items:
        await asyncio.sleep(0.001)
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
    assert running.service.stats()["item_errors_total"] == {"OVERLOADED": 10}


async def test_stats_describe_the_current_load(running: Running, engine: FakeEngine) -> None:
    await running.stub.Analyze(pb2.AnalyzeRequest(items=items(["w1", "w1 w2", "[SEP] " * 30])))
    engine.gate.clear()
    call = asyncio.ensure_future(running.stub.Analyze(pb2.AnalyzeRequest(items=items(["w1"]))))
    while running.service.stats()["requests_running"] != 1:
        await asyncio.sleep(0.001)
    stats = running.service.stats()
    assert (stats["items_total"], stats["tokens_total"], stats["serving"]) == (3, 3 + 4 + 16, True)
    assert stats["batches_total"] == len(engine.batch_shapes)
    assert stats["padding_tokens_total"] == sum(count * length for count, length in engine.batch_shapes) - 23
    assert running.service.metrics.value("polyhead_truncated_items_total") == 1
    engine.gate.set()
    await call


async def test_stream_continues_with_the_reloaded_model(
    running: Running, model: Model, tokenizer_file: Path, settings: Callable[..., Settings]
) -> None:
    call = running.stub.StreamAnalyze()
    await call.write(pb2.StreamAnalyzeRequest(items=items(["w1"])))
    (first,) = (await call.read()).answers
    variants = model.source.manifest.variants
    fingerprints = bundle.Fingerprints("e" * 16, {"topic": "T" * 16, "sentiment": "s" * 16})
    manifest = replace(model.source.manifest, variants={"fp32": replace(variants["fp32"], fingerprints=fingerprints)})
    source = bundle.Bundle(Path("new"), manifest, "f" * 64)
    old = running.service.pipeline
    assert old is not None
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
    running: Running, engine: FakeEngine, model: Model, settings: Callable[..., Settings]
) -> None:
    old, call = running.service.pipeline, running.stub.StreamAnalyze()
    assert old is not None
    engine.gate.clear()
    await call.write(pb2.StreamAnalyzeRequest(items=items(["w1"])))
    await engine.hold()
    await call.write(pb2.StreamAnalyzeRequest(items=items(["w2 w2", "w3"])))
    while old.scheduler.accounting.waiting_items < 2:
        await asyncio.sleep(0.001)
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
