"""Answers whose size and cost depend on limits of the server, and not on what a client sends."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
from google.rpc import error_details_pb2
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from polyhead.v1 import inference_service_pb2 as pb2
from polyhead.v1 import item_pb2
from polyhead_server.inference.loop_turns import LoopTurns
from polyhead_server.inference.model import Model
from polyhead_server.inference.pipeline import Pipeline
from polyhead_server.inference.types import Flow, InvalidItem, Item, Message, RequestOptions, Result
from polyhead_server.rpc.request_decoder import RequestDecoder
from polyhead_server.rpc.response_buffer import ResponseBuffer
from polyhead_server.rpc.response_encoder import ResponseEncoder
from polyhead_server.rpc.serving_model import ServingModel
from polyhead_server.rpc.status import status
from polyhead_server.rpc.stream import StreamReader, Submitter
from polyhead_server.settings import Settings

from tests.support.fake_engine import FakeEngine
from tests.support.inference_server import TEXTS, InferenceServer, collect, items

pytestmark = pytest.mark.timeout(60)

# Text that no message of the server contains.
MARKER = "zxqj"
# The largest error, and the largest id that an answer repeats.
MAX_ANSWER_BYTES = 1024 + 256


@pytest.fixture
def serving(model: Model) -> ServingModel:
    """The serving model without a running pipeline."""
    encoder = ResponseEncoder(model.source.manifest, model.fingerprints)
    return ServingModel(cast(Any, SimpleNamespace(model=model)), encoder)


def without(model: Model, kind: str) -> Model:
    """Returns a model without the heads of a kind."""
    heads = tuple(head for head in model.source.manifest.heads if head.kind != kind)
    manifest = dataclasses.replace(model.source.manifest, heads=heads)
    return dataclasses.replace(model, source=dataclasses.replace(model.source, manifest=manifest))


def reason(answer: item_pb2.Answer) -> str:
    info = error_details_pb2.ErrorInfo()
    return info.reason if answer.error.details and answer.error.details[0].Unpack(info) else ""


class HeadlessEngine(FakeEngine):
    """Has no sigmoid head."""

    def run(self, *arguments: Any) -> Any:
        return super().run(*arguments)[:2]


@pytest.mark.parametrize("method", ["Analyze", "StreamAnalyze", "StreamSentiment"])
async def test_task_without_a_head_is_not_available(
    loading: InferenceServer, model: Model, settings: Callable[..., Settings], method: str
) -> None:
    pipeline = Pipeline(dataclasses.replace(without(model, "sigmoid"), engine=HeadlessEngine()), settings())
    pipeline.start()
    loading.service.serve(pipeline)
    tasks: dict[str, Any] = {} if method == "StreamSentiment" else {"tasks": [1, 3]}
    request = getattr(pb2, f"{method}Request")(items=items(["w1", "w2"]), **tasks)
    stub = getattr(loading.stub, method)
    answers = (await stub(request)).answers if method == "Analyze" else await collect(stub(iter([request])))
    assert [(answer.item_id, answer.error.code) for answer in answers] == [("w1", 3), ("w2", 3)]
    assert {reason(answer) for answer in answers} == {"TASK_NOT_AVAILABLE"}
    assert "topic (softmax)" in answers[0].error.message
    # Whoever names no task gets those that there are.
    (every,) = (await loading.stub.Analyze(pb2.AnalyzeRequest(items=items(["w1"])))).answers
    assert every.result.HasField("classification")
    assert not every.result.HasField("sentiment")
    await pipeline.close()


async def test_unary_call_whose_answers_may_not_fit_is_refused_before_anything_is_computed(
    running: InferenceServer, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (await running.stub.GetModelInfo(pb2.GetModelInfoRequest())).model.limits.max_items_per_message == 1024
    monkeypatch.setattr("polyhead_server.rpc.response_encoder.MAX_RESPONSE_BYTES", 64 * 2**10)
    count = (await running.stub.GetModelInfo(pb2.GetModelInfoRequest())).model.limits.max_items_per_message
    assert 10 < count < 100
    for options in (item_pb2.ItemOptions(), item_pb2.ItemOptions(include_timings=True)):
        answers = (
            await running.stub.Analyze(
                pb2.AnalyzeRequest(items=[item_pb2.Item(item_id="i" * 256, text="w1")] * count, options=options)
            )
        ).answers
        assert [answer.WhichOneof("outcome") for answer in answers] == ["result"] * count
    engine.batch_shapes.clear()
    request = pb2.AnalyzeRequest(items=items(["w1"] * (count + 1)), options=options)
    (answer,) = (await running.stub.Analyze(request)).answers
    assert (answer.item_id, reason(answer)) == ("", "TOO_MANY_ITEMS")
    assert f"at most {count} are certain to fit" in answer.error.message
    assert engine.batch_shapes == []
    # A stream answers in as many messages as it needs.
    streamed = pb2.StreamAnalyzeRequest(items=items(["w1"] * (count + 1)), options=options)
    assert len(await collect(running.stub.StreamAnalyze(iter([streamed])))) == count + 1


MARKED = st.builds(lambda size, text: (text * size)[:60_000], st.integers(0, 20_000), st.just(MARKER))
NUMBERS = st.integers(0, 2**31 - 1)
OPTIONS = st.builds(
    lambda space, heads, truncation: item_pb2.ItemOptions(
        truncation=truncation,
        expected_fingerprints=item_pb2.Fingerprints(
            embedding_space=space,
            heads=[item_pb2.HeadFingerprint(head=head, fingerprint=value) for head, value in heads],
        ),
    ),
    st.one_of(MARKED, st.just(MARKER * 4)),
    st.lists(st.tuples(MARKED, st.one_of(MARKED, st.just(MARKER * 4))), max_size=3),
    st.one_of(st.just(0), NUMBERS),
)


@settings(max_examples=100, suppress_health_check=list(HealthCheck))
@given(
    options=OPTIONS,
    tasks=st.lists(st.one_of(st.integers(1, 3), NUMBERS), max_size=3),
    encoding=st.one_of(st.integers(0, 4), NUMBERS),
    dimensions=st.one_of(st.just(0), NUMBERS),
    sent=st.lists(st.tuples(st.sampled_from([b"1", b"\xff" * 90, b"i" * 300, b"\xc3\xa9" * 120]), MARKED), max_size=5),
    broken=st.booleans(),
)
def test_refusal_is_small_and_repeats_nothing_but_the_id(
    serving: ServingModel,
    *,
    options: item_pb2.ItemOptions,
    tasks: list[int],
    encoding: int,
    dimensions: int,
    sent: list[tuple[bytes, str]],
    broken: bool,
) -> None:
    request = pb2.AnalyzeRequest(
        options=options,
        tasks=tasks,  # type: ignore[arg-type]
        embedding_options=item_pb2.EmbeddingOptions(encoding=encoding, dimensions=dimensions),  # type: ignore[arg-type]
    )
    texts = [text.encode() + b"\xff" * broken for _, text in sent]
    data = request.SerializeToString() + b"".join(
        field(1, field(1, item_id) + field(2, text)) for (item_id, _), text in zip(sent, texts, strict=True)
    )
    message = serving.check_unary(RequestDecoder(pb2.AnalyzeRequest, 1024)(data))
    for part in message.parts():
        for item in part.items:
            error = message.error or (item.error if isinstance(item, InvalidItem) else None)
            if error:
                answer = serving.encoder.for_options(message.options).encode(item.item_id, error)
                assert len(answer) < MAX_ANSWER_BYTES
                assert MARKER.encode() not in answer


def field(number: int, data: bytes) -> bytes:
    """Encodes a field of bytes."""
    length = bytearray()
    rest = len(data)
    while rest > 127:
        length.append(rest & 127 | 128)
        rest >>= 7
    return bytes([number << 3 | 2, *length, rest]) + data


@pytest.mark.parametrize("truncation", [0, 77], ids=["valid", "refused"])
async def test_calls_with_many_items_take_turns(
    running: InferenceServer, monkeypatch: pytest.MonkeyPatch, truncation: int
) -> None:
    """A part of a large message is all that the loop works on between two turns."""
    sizes: list[int] = []
    turns = 0
    parts, take_turn = Message.parts, LoopTurns.next

    def record(message: Message) -> Any:
        for part in parts(message):
            sizes.append(len(part.items))
            yield part

    async def count(self: LoopTurns) -> None:
        nonlocal turns
        turns += 1
        await take_turn(self)

    monkeypatch.setattr(Message, "parts", record)
    monkeypatch.setattr(LoopTurns, "next", count)
    options = item_pb2.ItemOptions(truncation=truncation)  # type: ignore[arg-type]
    request = pb2.AnalyzeRequest(items=items(TEXTS * 5), options=options)
    response = await running.stub.Analyze(request)
    assert [answer.item_id for answer in response.answers] == TEXTS * 5
    assert {answer.error.code for answer in response.answers} == ({3} if truncation else {0})
    assert sizes == [64] * 7 + [52]
    # A turn before each part but the first, when it is decoded and when it is answered.
    assert turns >= 14
    before = turns
    await running.stub.Analyze(pb2.AnalyzeRequest(items=items(TEXTS[:64]), options=options))
    assert turns == before


async def test_large_call_is_answered_by_the_model_that_a_reload_brings_while_it_is_decoded(
    running: InferenceServer, model: Model, settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    old = running.service.pipeline
    assert isinstance(old, Pipeline)
    new = Pipeline(dataclasses.replace(model, engine=FakeEngine()), settings())
    new.start()
    take_turn, reloaded = LoopTurns.next, False

    async def reload(self: LoopTurns) -> None:
        nonlocal reloaded
        if not reloaded:
            reloaded = True
            running.service.serve(new)
            old.scheduler.close()
        await take_turn(self)

    monkeypatch.setattr(LoopTurns, "next", reload)
    response = await asyncio.wait_for(running.stub.Analyze(pb2.AnalyzeRequest(items=items(TEXTS * 2))), 30)
    assert reloaded
    assert {answer.WhichOneof("outcome") for answer in response.answers} == {"result"}
    await new.close()


async def test_error_of_a_message_is_made_once(running: InferenceServer, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def record(error: Any) -> Any:
        made.append(error.reason)
        return status(error)

    monkeypatch.setattr("polyhead_server.rpc.response_encoder.status", record)
    options = item_pb2.ItemOptions(truncation=77)  # type: ignore[arg-type]
    await running.stub.Analyze(pb2.AnalyzeRequest(items=items(TEXTS), options=options))
    await collect(running.stub.StreamAnalyze(iter([pb2.StreamAnalyzeRequest(items=items(TEXTS), options=options)])))
    assert made == ["UNKNOWN_TRUNCATION"] * 2


async def test_message_of_a_stream_enters_the_queue_in_parts(
    model: Model, engine: FakeEngine, settings: Callable[..., Settings]
) -> None:
    pipeline = Pipeline(model, settings(max_queue_tokens=400))
    pipeline.start()
    engine.gate.clear()
    serving = ServingModel.from_pipeline(pipeline)
    buffer = ResponseBuffer(10_000)
    turns = LoopTurns()
    reader = StreamReader(buffer, Submitter(lambda _: serving, None, turns), turns)

    async def messages() -> AsyncIterator[Message]:
        yield Message([Item(str(number), "w1 w2 w3") for number in range(1000)], RequestOptions())

    reading = asyncio.create_task(reader.run(messages()))
    await engine.hold()
    # Nobody else is refused while the stream has more to send than the queue holds.
    (other,) = await pipeline.submit(Message([Item("", "w4")], RequestOptions()), Flow(unary=True), None)
    assert not other.done()
    engine.gate.set()
    assert isinstance(await other, Result)
    most = 0
    while not reading.done():
        most = max(most, pipeline.scheduler.accounting.pending_tokens)
        await asyncio.sleep(0)
    # Half of the queue by estimate, where each text has one token more; and not the 5,000 tokens of the message.
    assert 0 < most <= 250
    answered = 0
    while ready := await buffer.ready():
        assert all(isinstance(one.future.result(), Result) for one in ready)
        answered += len(ready)
    assert answered == 1000
    await pipeline.close()
