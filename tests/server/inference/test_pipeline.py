from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator, Callable

import pytest
import tokenizers
from polyhead_server.engines import EngineError
from polyhead_server.errors import ExpiredError, InternalError, InvalidRequestError, OverloadedError, TextTooLongError
from polyhead_server.inference import pipeline as pipeline_module
from polyhead_server.inference import postprocessing, scheduler
from polyhead_server.inference.model import Model
from polyhead_server.inference.pipeline import Pipeline
from polyhead_server.inference.scheduler import Flow
from polyhead_server.inference.types import (
    InvalidItem,
    Item,
    ItemOutcome,
    Message,
    RequestOptions,
    Result,
    TokenizedText,
    Truncation,
)
from polyhead_server.settings import Settings

from tests.support.fake_engine import FakeEngine, embedding_of


@pytest.fixture
async def pipeline(model: Model, settings: Callable[..., Settings]) -> AsyncIterator[Pipeline]:
    pipeline = Pipeline(model, settings())
    pipeline.start()
    yield pipeline
    await pipeline.close()


def message(*texts: str, options: RequestOptions | None = None) -> Message:
    return Message(tuple(Item(text, text) for text in texts), options or RequestOptions())


async def outcomes(pipeline: Pipeline, message: Message, deadline: float | None = None) -> list[ItemOutcome]:
    return await asyncio.wait_for(asyncio.gather(*await pipeline.submit(message, Flow(), deadline)), 30)


def embedding(outcome: ItemOutcome) -> list[float]:
    assert isinstance(outcome, Result)
    return [float(value) for value in outcome.numbers.embedding]


async def test_every_text_gets_its_own_answer(pipeline: Pipeline) -> None:
    texts = [" ".join(f"w{(start + step) % 200}" for step in range(start % 9)) for start in range(40)]
    answers = await outcomes(pipeline, message(*texts))
    assert [embedding(answer) for answer in answers] == [embedding_of(text) for text in texts]


async def test_waiting_items_of_many_messages_share_a_pass(pipeline: Pipeline, engine: FakeEngine) -> None:
    engine.gate.clear()
    first = await pipeline.submit(message("w1"), Flow(), None)
    await engine.hold()
    rest = [await pipeline.submit(message("w2"), Flow(), None) for _ in range(5)]
    engine.gate.set()
    await asyncio.gather(*first, *(future for futures in rest for future in futures))
    assert engine.batch_shapes == [(1, 3), (5, 3)]


@pytest.fixture
def lone(pipeline: Pipeline) -> FakeEngine:
    """The pipeline's engine on all cores."""
    engine = FakeEngine()
    pipeline.model = dataclasses.replace(pipeline.model, lone_engine=engine)
    return engine


async def test_pass_gets_all_cores_where_passes_have_come_alone_for_a_while(
    pipeline: Pipeline, engine: FakeEngine, lone: FakeEngine
) -> None:
    for number in range(pipeline_module._ALONE + 2):
        (answer,) = await outcomes(pipeline, message(f"w{number}"))
        assert embedding(answer) == embedding_of(f"w{number}")
    assert len(lone.batch_shapes) == 2
    assert len(engine.batch_shapes) == pipeline_module._ALONE


async def test_pass_beside_others_gets_one_core(pipeline: Pipeline, engine: FakeEngine, lone: FakeEngine) -> None:
    for number in range(pipeline_module._ALONE):
        await outcomes(pipeline, message(f"w{number}"))
    lone.gate.clear()
    first = await pipeline.submit(message("w1"), Flow(), None)
    await lone.hold()
    rest = [await pipeline.submit(message(text), Flow(), None) for text in ("w2", " ".join(["w3"] * 9))]
    lone.gate.set()
    await asyncio.gather(*first, *(future for futures in rest for future in futures))
    assert len(lone.batch_shapes) == 1
    assert len(engine.batch_shapes) == pipeline_module._ALONE + 2


async def test_pass_that_fails_on_all_cores_is_computed_again_on_one(
    pipeline: Pipeline, engine: FakeEngine, lone: FakeEngine
) -> None:
    lone.fails = RuntimeError("broken")
    for number in range(pipeline_module._ALONE):
        await outcomes(pipeline, message(f"w{number}"))
    (answer,) = await outcomes(pipeline, message("poison"))
    assert isinstance(answer, Result)
    assert len(lone.batch_shapes) == 1
    assert len(engine.batch_shapes) == pipeline_module._ALONE + 1


async def test_unreadable_item_is_answered_with_its_error(pipeline: Pipeline) -> None:
    error = InvalidRequestError("TEXT_NOT_UTF8", "no")
    mixed = Message((InvalidItem("x", error), Item("y", "w1")), RequestOptions())
    bad, good = await outcomes(pipeline, mixed)
    assert bad is error
    assert embedding(good) == embedding_of("w1")


async def test_long_text_is_refused_only_when_asked(pipeline: Pipeline) -> None:
    texts = ("w1", "w1 " * 30)
    good, refused = await outcomes(pipeline, message(*texts, options=RequestOptions(truncation=Truncation.ERROR)))
    assert embedding(good) == embedding_of("w1")
    assert isinstance(refused, TextTooLongError)
    assert all(isinstance(answer, Result) for answer in await outcomes(pipeline, message(*texts)))


async def test_expired_item_is_answered_and_not_computed(
    pipeline: Pipeline, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.gate.clear()
    running = await pipeline.submit(message("w1"), Flow(), None)
    await engine.hold()
    waiting = await pipeline.submit(message("w2"), Flow(), time.monotonic() + 1000)
    monkeypatch.setattr(scheduler, "time", FakeClock(time.monotonic() + 2000))
    engine.gate.set()
    assert isinstance(await waiting[0], ExpiredError)
    assert isinstance(await running[0], Result)
    assert engine.batch_shapes == [(1, 3)]


class FakeClock:
    """Stands in the place of ``time``."""

    def __init__(self, now: float) -> None:
        self.monotonic = lambda: now


async def test_cancelled_item_is_not_computed(pipeline: Pipeline, engine: FakeEngine) -> None:
    engine.gate.clear()
    running = await pipeline.submit(message("w1"), Flow(), None)
    await engine.hold()
    (waiting,) = await pipeline.submit(message("w2"), Flow(), None)
    (kept,) = await pipeline.submit(message("w3"), Flow(), None)
    waiting.cancel()
    engine.gate.set()
    assert embedding(await kept) == embedding_of("w3")
    await running[0]
    assert engine.batch_shapes == [(1, 3), (1, 3)]


class Panic(BaseException):
    """Like a Rust panic: no Exception."""


async def test_engine_that_loses_a_row_answers_its_items_and_the_next_pass_works(
    pipeline: Pipeline, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = engine.run
    monkeypatch.setattr(engine, "run", lambda ids, mask: [values[1:] for values in whole(ids, mask)])
    (bad,) = await outcomes(pipeline, message("w1"))
    assert isinstance(bad, InternalError)
    monkeypatch.setattr(engine, "run", whole)
    (good,) = await outcomes(pipeline, message("w1"))
    assert embedding(good) == embedding_of("w1")


async def test_stream_that_waits_for_room_is_woken_when_the_queue_was_cancelled(
    model: Model, engine: FakeEngine, settings: Callable[..., Settings]
) -> None:
    pipeline = Pipeline(model, settings(max_queue_s=0.0))
    pipeline.start()
    await outcomes(pipeline, message("w1"))
    engine.gate.clear()
    running = await pipeline.submit(message("w1"), Flow(), None, patient=True)
    await engine.hold()
    stream = Flow()
    waiting = await pipeline.submit(message("w2"), stream, None, patient=True)
    room = asyncio.ensure_future(pipeline.admission.room(stream))
    await asyncio.sleep(0)
    assert not room.done()
    for future in [*running, *waiting]:
        future.cancel()
    engine.gate.set()
    await asyncio.wait_for(room, 30)
    await pipeline.close()


@pytest.mark.parametrize("failure", [RuntimeError("secret"), Panic("secret")])
async def test_failing_pass_answers_its_items_and_the_next_pass_works(
    pipeline: Pipeline, engine: FakeEngine, failure: BaseException
) -> None:
    engine.error = failure
    (bad,) = await outcomes(pipeline, message("poison"))
    assert isinstance(bad, InternalError)
    assert "secret" not in str(bad)
    (good,) = await outcomes(pipeline, message("w1"))
    assert embedding(good) == embedding_of("w1")


async def test_text_that_fails_a_pass_fails_no_other(pipeline: Pipeline, engine: FakeEngine) -> None:
    engine.error = RuntimeError("broken")
    engine.gate.clear()
    first = await pipeline.submit(message("w1"), Flow(), None)
    await engine.hold()
    rest = await pipeline.submit(message("w2", "poison", "w3"), Flow(), None)
    engine.gate.set()
    await asyncio.gather(*first, *rest)
    good, bad, other = (future.result() for future in rest)
    assert isinstance(bad, InternalError)
    assert [embedding(good), embedding(other)] == [embedding_of("w2"), embedding_of("w3")]
    assert engine.batch_shapes[1:] == [(3, 3), (1, 3), (1, 3), (1, 3)]


async def test_failing_tokenizer_answers_its_items(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def encode_batch_fast(self, texts: list[str]) -> list[tokenizers.Encoding]:
            raise Panic

    monkeypatch.setattr(pipeline.model.tokenizer, "_tokenizer", Broken())
    (bad,) = await outcomes(pipeline, message("w1"))
    assert isinstance(bad, InternalError)


async def test_timings_add_up(pipeline: Pipeline) -> None:
    (answer,) = await outcomes(pipeline, message("w1"))
    assert isinstance(answer, Result)
    timings = answer.timings
    assert timings.total_ns >= timings.tokenization_ns + timings.queue_ns + timings.compute_ns
    assert 0 <= timings.admission_ns < 10**9
    assert (timings.batch_items, timings.batch_tokens) == (1, 3)


async def test_wait_for_room_is_part_of_the_timings(pipeline: Pipeline) -> None:
    since_5_s = time.monotonic_ns() - 5 * 10**9
    (future,) = await pipeline.submit(message("w1"), Flow(), None, patient=True, arrived_ns=since_5_s)
    answer = await future
    assert isinstance(answer, Result)
    assert 5 * 10**9 <= answer.timings.admission_ns < answer.timings.total_ns


async def test_closing_answers_what_was_accepted(model: Model, settings: Callable[..., Settings]) -> None:
    pipeline = Pipeline(model, settings())
    pipeline.start()
    futures = await pipeline.submit(message(*["w1"] * 30), Flow(), None)
    await asyncio.wait_for(pipeline.close(), 30)
    assert all(isinstance(outcome, Result) for outcome in await asyncio.gather(*futures))


async def test_closing_waits_for_what_is_being_tokenized(model: Model, settings: Callable[..., Settings]) -> None:
    pipeline = Pipeline(model, settings())
    pipeline.start()
    submitting = asyncio.ensure_future(pipeline.submit(message(*["w1 " * 200] * 300), Flow(), None))
    await asyncio.sleep(0)
    await asyncio.wait_for(pipeline.close(), 30)
    assert all(isinstance(outcome, Result) for outcome in await asyncio.gather(*await submitting))


LONG = " ".join(f"w{number}" for number in range(40))


async def test_long_text_is_answered_from_all_its_windows(pipeline: Pipeline) -> None:
    options = RequestOptions(truncation=Truncation.WINDOW)
    short, long = await outcomes(pipeline, message("w1", LONG, options=options))
    assert isinstance(long, Result)
    assert isinstance(short, Result)
    assert (len(short.tokens.windows), len(long.tokens.windows), long.tokens.cut_at) == (1, 3, None)
    tokens = [len(window) for window in long.tokens.windows]
    # The fake engine's second number is that of tokens.
    assert long.numbers.embedding[1] == pytest.approx(sum(number * number for number in tokens) / sum(tokens))
    assert embedding(short) == embedding_of("w1")


async def test_cancelled_long_text_leaves_the_queue(pipeline: Pipeline, engine: FakeEngine) -> None:
    engine.gate.clear()
    running = await pipeline.submit(message("w1"), Flow(), None)
    await engine.hold()
    (long,) = await pipeline.submit(message(LONG, options=RequestOptions(truncation=Truncation.WINDOW)), Flow(), None)
    assert pipeline.queue.waiting == 3
    long.cancel()
    for _ in range(5):
        await asyncio.sleep(0)
    assert pipeline.queue.waiting == 0
    engine.gate.set()
    await running[0]
    assert engine.batch_shapes == [(1, 3)]


async def test_cancelled_long_text_leaves_no_trace_in_the_log(
    pipeline: Pipeline, engine: FakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    engine.gate.clear()
    running = await pipeline.submit(message("w1"), Flow(), None)
    await engine.hold()
    (long,) = await pipeline.submit(message(LONG, options=RequestOptions(truncation=Truncation.WINDOW)), Flow(), None)
    long.cancel()
    engine.gate.set()
    await running[0]
    await asyncio.sleep(0)
    assert caplog.records == []


async def test_pooling_that_fails_is_answered(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ValueError("secret")

    monkeypatch.setattr(postprocessing, "pool", broken)
    (bad,) = await outcomes(pipeline, message(LONG, options=RequestOptions(truncation=Truncation.WINDOW)))
    assert isinstance(bad, InternalError)


async def test_engine_that_fails_for_good_is_found(
    pipeline: Pipeline, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    tested: list[object] = []

    def self_test(*_: object) -> None:
        tested.append(_)
        if len(tested) > 1:
            raise EngineError("it answers golden texts wrongly")

    monkeypatch.setattr(pipeline_module, "self_test", self_test)
    rates = pipeline.admission._tokens_per_s
    engine.error = RuntimeError("sticky")
    for number in range(40):
        await outcomes(pipeline, message("poison"))
        # Texts that it cannot answer are no reason, as long as it answers the golden ones.
        assert pipeline.trouble() is None or number == 39
    while pipeline.trouble() is None:
        await asyncio.sleep(0)
    assert "20 passes in a row failed" in str(pipeline.trouble())
    assert len(tested) == 2
    # It learns nothing from them.
    assert pipeline.admission._tokens_per_s == rates


async def test_pass_that_hangs_is_found(
    model: Model, engine: FakeEngine, settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = Pipeline(model, settings(batch_timeout_s=100))
    pipeline.start()
    engine.gate.clear()
    running = await pipeline.submit(message("w1"), Flow(), None)
    await engine.hold()
    assert pipeline.trouble() is None
    now = time.monotonic_ns()
    monkeypatch.setattr(time, "monotonic_ns", lambda: now + 101 * 10**9)
    assert "has been running for 101 s" in str(pipeline.trouble())
    monkeypatch.undo()
    engine.gate.set()
    await running[0]
    await pipeline.close()
    assert pipeline.trouble() is None


async def test_compute_thread_that_ends_is_found(
    model: Model, settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    def take() -> None:
        raise IndexError

    pipeline = Pipeline(model, settings())
    monkeypatch.setattr(pipeline.queue, "take", take)
    pipeline.start()
    await pipeline.close()
    assert pipeline.trouble() == "a compute thread ended: IndexError"


async def test_items_of_a_mass_of_long_texts_enter_as_they_are_tokenized(
    model: Model, engine: FakeEngine, settings: Callable[..., Settings]
) -> None:
    pipeline = Pipeline(model, settings())
    engine.gate.clear()
    submitting = asyncio.ensure_future(pipeline.submit(message(*["w1 " * 200] * 2000), Flow(), None))
    while not pipeline.queue.waiting:
        await asyncio.sleep(0)
    assert not submitting.done()
    assert pipeline.admission.expected_wait_s() == 0
    short = await pipeline.submit(message("w2"), Flow(), None)
    engine.gate.set()
    pipeline.start()
    assert embedding(await short[0]) == embedding_of("w2")
    assert all(isinstance(outcome, Result) for outcome in await asyncio.gather(*await submitting))
    assert pipeline.admission._characters == pipeline.admission._reserved_tokens == 0
    await pipeline.close()


async def test_window_that_fails_fails_its_text_alone(pipeline: Pipeline, engine: FakeEngine) -> None:
    engine.error = RuntimeError("secret")
    bad, good = await outcomes(
        pipeline, message(LONG + " poison", LONG, options=RequestOptions(truncation=Truncation.WINDOW))
    )
    # The good text may have shared a pass with the bad one; alone it is answered.
    assert isinstance(bad, InternalError)
    engine.error = None
    (good,) = await outcomes(pipeline, message(LONG, options=RequestOptions(truncation=Truncation.WINDOW)))
    assert isinstance(good, Result)


async def test_what_does_not_fit_before_the_deadline_is_refused_and_the_rest_answered(
    pipeline: Pipeline, engine: FakeEngine
) -> None:
    for _ in range(200):
        pipeline.admission.learn(tokens=100, compute_s=1.0, backlog=True)
    # 100 tokens a second: of 50 texts with 2 tokens each, 32 are expected within 0.65 of a second, less a pass.
    pipeline.admission._pass_s = 0.0
    answers = await outcomes(pipeline, message(*["w1"] * 50), time.monotonic() + 1.0)
    refused = [answer for answer in answers if isinstance(answer, OverloadedError)]
    assert 16 <= len(refused) <= 20
    assert answers[-len(refused) :] == refused
    assert all(isinstance(answer, Result) for answer in answers[: -len(refused)])


async def test_message_that_is_cancelled_while_it_enters_leaves_nothing_behind(
    pipeline: Pipeline, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.gate.clear()
    (running,) = await pipeline.submit(message("w1"), Flow(), None)
    await engine.hold()
    encode, turns, entered = pipeline.model.tokenizer.encode_async, iter(range(10)), asyncio.Event()

    async def one_turn_at_a_time(texts: list[str], max_windows: int = 1) -> list[TokenizedText]:
        if next(turns):
            entered.set()
            await asyncio.Event().wait()
        return await encode(texts, max_windows)

    monkeypatch.setattr(pipeline.model.tokenizer, "encode_async", one_turn_at_a_time)
    monkeypatch.setattr(pipeline.model.tokenizer, "turns", lambda texts: [slice(0, 2), slice(2, len(texts))])
    entering = asyncio.create_task(pipeline.submit(message("w1", "w2", "w3"), Flow(), None))
    await entered.wait()
    assert pipeline.queue.waiting == 2
    entering.cancel()
    await asyncio.wait({entering})
    await asyncio.sleep(0)
    assert pipeline.queue.waiting == 0
    engine.gate.set()
    assert isinstance(await running, Result)
